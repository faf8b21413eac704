// Payloads of tensors: numbers that make branches meet.
#ifndef NNI_COMPRESSION_TESTS_FUZZ_RPC_TENSORS_H_
#define NNI_COMPRESSION_TESTS_FUZZ_RPC_TENSORS_H_

#include <cstdint>
#include <string>

#include "nni/compression/v1/compression.pb.h"
#include "tests/fuzz/rpc/random.h"

namespace nni_compression::fuzz {

// `elements` numbers of the type, as bytes: ordinary ones, all alike, two values, the largest and
// the smallest there are, now and then one that is not finite. Of a type that has no floating-point
// numbers: any bytes, of the length that the type has.
std::string Payload(nni::compression::v1::DataType dtype, int64_t elements, Random& random);

// Bytes of so many elements.
uint64_t ByteLength(nni::compression::v1::DataType dtype, int64_t elements);

}  // namespace nni_compression::fuzz

#endif  // NNI_COMPRESSION_TESTS_FUZZ_RPC_TENSORS_H_
