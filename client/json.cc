#include "client/json.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/util/json_util.h>

#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/exit_code.h"

namespace ferrite {
namespace {

// Clears the lists of `base` that `over` has, since merging would append to them.
void ClearOverridden(const google::protobuf::Message& over, google::protobuf::Message* base) {
  const google::protobuf::Reflection* reflection = over.GetReflection();
  std::vector<const google::protobuf::FieldDescriptor*> fields;
  reflection->ListFields(over, &fields);
  for (const google::protobuf::FieldDescriptor* field : fields) {
    if (field->is_repeated()) {
      base->GetReflection()->ClearField(base, field);
    } else if (field->cpp_type() == google::protobuf::FieldDescriptor::CPPTYPE_MESSAGE &&
               base->GetReflection()->HasField(*base, field)) {
      ClearOverridden(reflection->GetMessage(over, field),
                      base->GetReflection()->MutableMessage(base, field));
    }
  }
}

}  // namespace

std::string ToJsonLine(const google::protobuf::Message& message) {
  google::protobuf::util::JsonPrintOptions options;
  options.preserve_proto_field_names = true;
  options.always_print_primitive_fields = true;
  std::string text;
  // Messages that came over the wire hold nothing that JSON cannot say.
  const auto status = google::protobuf::util::MessageToJsonString(message, &text, options);
  return status.ok() ? text : "{}";
}

absl::Status FromJson(const std::string& text, google::protobuf::Message* message) {
  const auto status = google::protobuf::util::JsonStringToMessage(text, message);
  if (status.ok()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      status.message().data() == nullptr
          ? absl::string_view("is no JSON object of the contract")
          : absl::string_view(status.message().data(), status.message().size()));
}

std::string WithIndex(int64_t index, const std::string& object) {
  return absl::StrCat("{\"index\":", index, object.size() > 2 ? "," : "", object.substr(1));
}

std::string ErrorJson(int64_t index, const grpc::Status& status) {
  using Json = nlohmann::ordered_json;  // a status message may hold any bytes
  const Json error = {
      {"index", index},
      {"error",
       {{"code", StatusCodeName(status.error_code())}, {"message", status.error_message()}}}};
  return error.dump(-1, ' ', false, Json::error_handler_t::replace);
}

void Override(const google::protobuf::Message& over, google::protobuf::Message* base) {
  ClearOverridden(over, base);
  base->MergeFrom(over);
}

}  // namespace ferrite
