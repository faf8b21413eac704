// A compressor whose code runs on its host's threads.
#ifndef NNI_COMPRESSION_SERVER_EXTERNAL_GUARDED_COMPRESSOR_H_
#define NNI_COMPRESSION_SERVER_EXTERNAL_GUARDED_COMPRESSOR_H_

#include <memory>

#include "compression/algorithms/algorithm.h"
#include "server/external/external_algorithm.h"

namespace nni_compression::server {

// The same algorithm, whose compressors return the results of those of `info`, or a status.
// Arguments are copied (a weight by handle), so that an abandoned call touches only its own copies.
compression::AlgorithmInfo Guarded(const compression::AlgorithmInfo& info,
                                   const std::shared_ptr<ExternalHost>& host);

}  // namespace nni_compression::server

#endif  // NNI_COMPRESSION_SERVER_EXTERNAL_GUARDED_COMPRESSOR_H_
