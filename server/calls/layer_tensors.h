// Payloads that bypass the network: cached weights and shared memory.
#ifndef NNI_COMPRESSION_SERVER_CALLS_LAYER_TENSORS_H_
#define NNI_COMPRESSION_SERVER_CALLS_LAYER_TENSORS_H_

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "compression/types/buffer.h"
#include "nni/compression/v1/compression.pb.h"
#include "server/calls/components.h"
#include "server/tensors/reply_queue.h"
#include "server/tensors/tensor_receiver.h"

namespace nni_compression::server {

// Access of one tenant's calls to the weight cache and to shared memory. Thread-safe.
class LayerTensors {
 public:
  LayerTensors(Components* components, std::string tenant)
      : components_(components), tenant_(std::move(tenant)) {}

  // Looks up a weight that the tenant sent before, by the header's digest; returns whether it was
  // found.
  bool FindKnown(const nni::compression::v1::TensorHeader& header,
                 TensorSink::Admission* admission) const;

  // Finds the bytes in the shared memory that the header names, and checks the place for the
  // result. An error, of this header only, for memory that is not the tenant's.
  absl::Status FindShared(const nni::compression::v1::TensorHeader& header,
                          TensorSink::Admission* admission) const;

  // Adds `bytes`, the tensor of `header`, to a reply: written to the place that the request's
  // header names, if it fits and the region still exists, or else as a payload to be sent.
  void AddResult(const ReceivedTensor& request, compression::Buffer bytes,
                 nni::compression::v1::TensorHeader* header, Reply* reply) const;

  // Whether the tensor is a weight that is worth caching.
  static bool IsWorthKeeping(const ReceivedTensor& tensor);

  // Caches a weight. DATA_LOSS when its digest is not the one announced. `memory` is the
  // reservation of its bytes.
  absl::Status Keep(const nni::compression::v1::TensorHeader& header,
                    const compression::Buffer& bytes, Reservation memory) const;

 private:
  Components* const components_;
  const std::string tenant_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_LAYER_TENSORS_H_
