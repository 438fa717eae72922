// Messages of the contract as JSON: protobuf's mapping, with the fields' names as in the proto.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/status.h>

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace ferrite {

// One line. Fields without presence are there even where they are zero or empty.
std::string ToJsonLine(const google::protobuf::Message& message);

// Reads one JSON object; names may be as in the proto or in lowerCamelCase. InvalidArgument says
// where it is wrong, unknown fields included.
absl::Status FromJson(const std::string& text, google::protobuf::Message* message);

// `object`, a line of ToJsonLine, with the first member "index".
std::string WithIndex(int64_t index, const std::string& object);

// {"index":3,"error":{"code":"NOT_FOUND","message":"..."}}
std::string ErrorJson(int64_t index, const grpc::Status& status);

// Sets what `over` has set in `base`: a list or map of `over` takes the place of the one in `base`.
void Override(const google::protobuf::Message& over, google::protobuf::Message* base);

}  // namespace ferrite
