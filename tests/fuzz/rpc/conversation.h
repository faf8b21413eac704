// Conversations of trainers with a server: sessions that are bound rightly, most of the time, and
// calls of every method that the service has, some of whose messages were changed.
#ifndef NNI_COMPRESSION_TESTS_FUZZ_RPC_CONVERSATION_H_
#define NNI_COMPRESSION_TESTS_FUZZ_RPC_CONVERSATION_H_

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <grpcpp/generic/generic_stub.h>

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "nni/compression/v1/compression.pb.h"
#include "tests/fuzz/rpc/messages.h"
#include "tests/fuzz/rpc/random.h"
#include "tests/fuzz/rpc/raw_call.h"

namespace nni_compression::fuzz {

using MessagePtr = std::unique_ptr<google::protobuf::Message>;

// A call that ended.
struct Exchange {
  grpc::Status status;
  std::vector<MessagePtr> replies;
};

// Calls `method` with the messages and half-closes. Checks what is promised of every reply.
Exchange Call(grpc::GenericStub& stub, const google::protobuf::MethodDescriptor& method,
              const std::string& tenant,
              const std::vector<const google::protobuf::Message*>& messages);

const google::protobuf::MethodDescriptor& MethodOf(const std::string& name);

class Conversation {
 public:
  // All that happens follows from the seed, and from what the server answers.
  // Adds to `succeeded`, by method, the calls that the server did.
  Conversation(grpc::GenericStub& stub, uint64_t seed, std::map<std::string, int>* succeeded);

  // Binds and calls.
  void Run();

  // Closes the sessions that are listed, also those whose reply was lost. A call that was broken
  // off may be carried out later than those that follow it, and bind one more.
  void CloseAll();

 private:
  struct Bound {
    std::string id;
    std::string tenant;
    std::vector<nni::compression::v1::Layer> layers;
    nni::compression::v1::Plan plan;
  };
  struct Pending;

  void Learn();
  void Bind();
  void CallSome();

  nni::compression::v1::BindModelRequest ComposeBind();
  void ComposeRule(const nni::compression::v1::Algorithm& algorithm,
                   google::protobuf::Struct& rule);
  std::vector<MessagePtr> Compose(const google::protobuf::MethodDescriptor& method,
                                  const Bound* session);
  std::vector<MessagePtr> ComposeTensors(const google::protobuf::MethodDescriptor& method,
                                         const Bound& session);
  nni::compression::v1::TensorHeader ComposeHeader(const google::protobuf::MethodDescriptor& method,
                                                   const nni::compression::v1::Layer& layer,
                                                   const Bound& session);
  std::unique_ptr<Pending> Start();
  void Settle(Pending& pending);

  grpc::GenericStub& stub_;
  std::map<std::string, int>& succeeded_;
  Random random_;
  Vocabulary words_;
  std::vector<nni::compression::v1::Algorithm> algorithms_;
  std::vector<const google::protobuf::MethodDescriptor*> methods_;
  std::vector<Bound> sessions_;
};

}  // namespace nni_compression::fuzz

#endif  // NNI_COMPRESSION_TESTS_FUZZ_RPC_CONVERSATION_H_
