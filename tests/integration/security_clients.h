// Clients of the tests of security: channels, tokens, and calls by name.
#pragma once

#include <google/protobuf/descriptor.h>
#include <google/protobuf/dynamic_message.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>

#include <chrono>
#include <filesystem>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "tests/testing/test_ca.h"

namespace ferrite::test {

// Every method of every service in proto/ferrite/v1, so that a new one is not forgotten.
inline std::vector<const google::protobuf::MethodDescriptor*> AllMethods(
    const std::string& source_dir) {
  std::vector<const google::protobuf::MethodDescriptor*> methods;
  for (const auto& entry : std::filesystem::directory_iterator(source_dir + "/proto/ferrite/v1")) {
    const std::string name = "ferrite/v1/" + entry.path().filename().string();
    const auto* file = google::protobuf::DescriptorPool::generated_pool()->FindFileByName(name);
    for (int s = 0; file != nullptr && s < file->service_count(); ++s) {
      for (int m = 0; m < file->service(s)->method_count(); ++m) {
        methods.push_back(file->service(s)->method(m));
      }
    }
  }
  return methods;
}

inline std::string PathOf(const google::protobuf::MethodDescriptor& method) {
  return "/" + method.service()->full_name() + "/" + method.name();
}

// Calls a method by its path with these bytes; "" sends no authorization. Reads one message, so
// that a stream of several ends with the deadline.
inline grpc::Status CallByPath(const std::shared_ptr<grpc::Channel>& channel,
                               const std::string& path, const std::string& request,
                               const std::string& authorization,
                               std::chrono::seconds timeout = std::chrono::seconds(30)) {
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + timeout);
  if (!authorization.empty()) context.AddMetadata("authorization", authorization);
  const grpc::Slice slice(request);
  const grpc::ByteBuffer bytes(&slice, 1);
  grpc::ByteBuffer response;
  std::promise<grpc::Status> done;
  grpc::TemplatedGenericStub<grpc::ByteBuffer, grpc::ByteBuffer>(channel).UnaryCall(
      &context, path, grpc::StubOptions(), &bytes, &response,
      [&](grpc::Status status) { done.set_value(std::move(status)); });
  return done.get_future().get();
}

// A connection of its own. Null credentials: plain text.
inline std::shared_ptr<grpc::Channel> Connect(
    const std::string& address, std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  if (credentials == nullptr) credentials = grpc::InsecureChannelCredentials();
  return grpc::CreateCustomChannel(address, credentials, arguments);
}

// Trusts `ca`; shows `pair`, if it is not empty.
inline std::shared_ptr<grpc::ChannelCredentials> Tls(const std::string& ca,
                                                     const PemPair& pair = {}) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = ca;
  options.pem_cert_chain = pair.certificate;
  options.pem_private_key = pair.key;
  return grpc::SslCredentials(options);
}

}  // namespace ferrite::test
