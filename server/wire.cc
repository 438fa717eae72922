#include "server/wire.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/support/proto_buffer_reader.h>
#include <grpcpp/support/slice.h>

#include <optional>
#include <string>
#include <string_view>

#include "absl/strings/str_cat.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::UnknownField;
using google::protobuf::UnknownFieldSet;

constexpr int kDeepest = 32;

// Looks through the fields of a message that was parsed as unknown ones for a string that is not
// UTF-8, and says where it is.
std::optional<std::string> FindBadString(const UnknownFieldSet& fields, const Descriptor& type,
                                         const std::string& path, int depth) {
  for (int i = 0; i < fields.field_count(); ++i) {
    const UnknownField& field = fields.field(i);
    const FieldDescriptor* const known = type.FindFieldByNumber(field.number());
    if (known == nullptr || field.type() != UnknownField::TYPE_LENGTH_DELIMITED) {
      continue;
    }
    const std::string name = absl::StrCat(path, known->name());
    const std::string& value = field.length_delimited();
    if (known->type() == FieldDescriptor::TYPE_STRING) {
      if (const std::optional<size_t> offset = FindInvalidUtf8(value)) {
        return absl::StrCat(name, " is not valid UTF-8 at byte ", *offset, " of ", value.size());
      }
    } else if (known->type() == FieldDescriptor::TYPE_MESSAGE && depth < kDeepest) {
      UnknownFieldSet inner;
      if (inner.ParseFromString(value)) {
        if (auto found = FindBadString(inner, *known->message_type(), name + ".", depth + 1)) {
          return found;
        }
      }
    }
  }
  return std::nullopt;
}

}  // namespace

absl::Status ParseMessage(const grpc::ByteBuffer& bytes, google::protobuf::Message* message) {
  grpc::ByteBuffer shared =
      bytes;  // the reader wants one that it may change; the slices are shared
  {
    grpc::ProtoBufferReader reader(&shared);
    if (reader.status().ok() && message->ParseFromZeroCopyStream(&reader)) {
      return absl::OkStatus();
    }
  }
  const Descriptor& type = *message->GetDescriptor();
  google::protobuf::Empty raw;
  grpc::ProtoBufferReader reader(&shared);
  if (reader.status().ok() && raw.ParseFromZeroCopyStream(&reader)) {
    const UnknownFieldSet& fields = raw.GetReflection()->GetUnknownFields(raw);
    if (const auto problem = FindBadString(fields, type, "", 0)) {
      return absl::InvalidArgumentError(*problem);
    }
  }
  return absl::InvalidArgumentError(
      absl::StrCat("the request's ", bytes.Length(), " bytes are no valid ", type.full_name()));
}

grpc::ByteBuffer SerializeMessage(const google::protobuf::Message& message) {
  const size_t size = message.ByteSizeLong();
  const grpc::Slice slice(size);  // ours alone, so that it may still be written
  message.SerializeWithCachedSizesToArray(const_cast<uint8_t*>(slice.begin()));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace ferrite
