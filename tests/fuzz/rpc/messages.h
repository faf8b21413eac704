// Messages that are made and changed by their descriptors, so that new calls and fields are covered
// without a change here.
#ifndef NNI_COMPRESSION_TESTS_FUZZ_RPC_MESSAGES_H_
#define NNI_COMPRESSION_TESTS_FUZZ_RPC_MESSAGES_H_

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <map>
#include <string>
#include <vector>

#include "tests/fuzz/rpc/random.h"

namespace nni_compression::fuzz {

// Strings that mean something to the server, by the names of the fields that they belong into:
// a field's values are tried most of the time, those of others now and then.
class Vocabulary {
 public:
  void Add(const std::string& field, const std::string& word) { words_[field].push_back(word); }
  std::string Word(const std::string& field, Random& random) const;

 private:
  std::map<std::string, std::vector<std::string>> words_;
};

// Sets about half of the fields, to values that are plausible, extreme or wrong.
void Fill(google::protobuf::Message& message, const Vocabulary& words, Random& random,
          int depth = 0);

// Changes one field somewhere in the message: another value, none, one element more or less,
// elements in another order.
void Mutate(google::protobuf::Message& message, const Vocabulary& words, Random& random);

// Whether all floating-point numbers in the message are finite, but those of a Struct: a
// config_list is returned as it was sent.
bool IsFinite(const google::protobuf::Message& message);

}  // namespace nni_compression::fuzz

#endif  // NNI_COMPRESSION_TESTS_FUZZ_RPC_MESSAGES_H_
