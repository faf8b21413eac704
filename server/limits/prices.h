// What things take in memory that are counted by their number: measured, and compared with the
// allocator by tests/integration/attacks/test_accounting.py. docs/reliability.md has the same
// table.
#ifndef NNI_COMPRESSION_SERVER_LIMITS_PRICES_H_
#define NNI_COMPRESSION_SERVER_LIMITS_PRICES_H_

#include <cstdint>

namespace nni_compression::server {

// A connection and a call, with what gRPC and OpenSSL hold for them: 24 KiB, with TLS 100, and 20
// KiB were measured. Their number has a limit of its own, so they come on top of the memory budget.
constexpr int64_t kConnectionBytes = 32 << 10;
constexpr int64_t kTlsConnectionBytes = 112 << 10;
constexpr int64_t kCallBytes = 24 << 10;

// A session beside its layers and rules.
constexpr int64_t kSessionBytes = 8 << 10;

// A layer of a session, without its names, shape and mask: it is in the binding, in the session's
// record and in two indices, and has a state.
constexpr int64_t kLayerBytes = 1 << 10;

// A weight that is kept beside its bytes: names, digest, and where they are looked up.
constexpr int64_t kCachedWeightBytes = 1 << 10;

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_LIMITS_PRICES_H_
