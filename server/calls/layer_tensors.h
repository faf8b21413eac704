// Tensors of layers that do not go over the network, either way.
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

// What one tenant's calls find in the cache of weights and in shared memory, and put there.
// Thread-safe.
class LayerTensors {
 public:
  LayerTensors(Components* components, std::string tenant)
      : components_(components), tenant_(std::move(tenant)) {}

  // Finds the bytes of a weight that the tenant sent before, by the header's digest, and says
  // whether they are there.
  bool FindKnown(const nni::compression::v1::TensorHeader& header,
                 TensorSink::Admission* admission) const;

  // Finds the bytes in the shared memory that the header names, and sees that the result has a
  // place. An error, which is the header's, for memory that is not the tenant's.
  absl::Status FindShared(const nni::compression::v1::TensorHeader& header,
                          TensorSink::Admission* admission) const;

  // Adds `bytes`, the tensor of `header`, to a reply: written to the place that the request's
  // header names, if it fits there and the region is still there, or as a payload to be sent.
  void AddResult(const ReceivedTensor& request, compression::Buffer bytes,
                 nni::compression::v1::TensorHeader* header, Reply* reply) const;

  // Whether the tensor is a weight that is worth keeping.
  static bool IsWorthKeeping(const ReceivedTensor& tensor);

  // Keeps a weight. DATA_LOSS when it does not have the digest that it came with. `memory` has its
  // bytes.
  absl::Status Keep(const nni::compression::v1::TensorHeader& header,
                    const compression::Buffer& bytes, Reservation memory) const;

 private:
  Components* const components_;
  const std::string tenant_;
};

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_CALLS_LAYER_TENSORS_H_
