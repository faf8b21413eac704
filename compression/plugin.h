// What a plugin includes.
#ifndef NNI_COMPRESSION_COMPRESSION_PLUGIN_H_
#define NNI_COMPRESSION_COMPRESSION_PLUGIN_H_

#include "compression/extensions/plugin.h"

#endif  // NNI_COMPRESSION_COMPRESSION_PLUGIN_H_
