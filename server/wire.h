// Messages to and from bytes. The services take raw bytes and parse them here: left to itself, gRPC
// 1.51 answers a request that does not parse with UNIMPLEMENTED and no message.
#pragma once

#include <google/protobuf/message.h>
#include <grpcpp/support/byte_buffer.h>

#include "absl/status/status.h"

namespace ferrite {

// InvalidArgument if the bytes are no such message: it names the string field that is not UTF-8,
// with the offset of the first bad byte, or else says that they are malformed.
absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message);

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message);

}  // namespace ferrite
