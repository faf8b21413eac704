// The memory cost of things that are counted by number: measured, and compared with the allocator
// by tests/integration/attacks/test_accounting.py. docs/reliability.md has the same table.
#ifndef NNI_COMPRESSION_SERVER_LIMITS_MEMORY_COSTS_H_
#define NNI_COMPRESSION_SERVER_LIMITS_MEMORY_COSTS_H_

#include <cstdint>

namespace nni_compression::server {

// A connection and a call, with the memory of gRPC and OpenSSL; measured: 24 KiB, 100 KiB with TLS,
// and 20 KiB. Their numbers are limited separately, so they come on top of the memory budget.
constexpr int64_t kConnectionBytes = 32 << 10;
constexpr int64_t kTlsConnectionBytes = 112 << 10;
constexpr int64_t kCallBytes = 24 << 10;

// A session without its layers and rules.
constexpr int64_t kSessionBytes = 8 << 10;

// A layer of a session, without its names, shape and mask: it is in the binding, in the session's
// record and in two indices, and has a state.
constexpr int64_t kLayerBytes = 1 << 10;

// A cached weight without its bytes: names, digest, and their table entries.
constexpr int64_t kCachedWeightBytes = 1 << 10;

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LIMITS_MEMORY_COSTS_H_
