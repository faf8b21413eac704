# How the project's own code is compiled. Third-party code never sees these settings.
add_library(nni_compression_settings INTERFACE)
target_compile_features(nni_compression_settings INTERFACE cxx_std_17)
target_include_directories(nni_compression_settings INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
target_compile_options(nni_compression_settings INTERFACE
  -Wall -Wextra -Wno-unused-parameter
  # Bit-equality with PyTorch is promised, and a fused multiply-add rounds once less.
  -ffp-contract=off
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>
  $<$<BOOL:${NNI_COMPRESSION_WERROR}>:-Werror>)

if(NNI_COMPRESSION_SANITIZE)
  target_compile_options(nni_compression_settings INTERFACE
    -fsanitize=${NNI_COMPRESSION_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  target_link_options(nni_compression_settings INTERFACE
    -fsanitize=${NNI_COMPRESSION_SANITIZE})
  if(NNI_COMPRESSION_SANITIZE STREQUAL "thread")
    # Protocol Buffers' headers add members to maps where they see it, and Debian's library has none.
    target_compile_options(nni_compression_settings INTERFACE -U__SANITIZE_THREAD__)
  endif()
endif()

set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

find_program(NNI_COMPRESSION_CCACHE ccache)
if(NNI_COMPRESSION_CCACHE)
  # What ccache asks for where headers are precompiled.
  set(CMAKE_CXX_COMPILER_LAUNCHER ${CMAKE_COMMAND} -E env
    CCACHE_SLOPPINESS=pch_defines,time_macros ${NNI_COMPRESSION_CCACHE})
  add_compile_options($<$<CXX_COMPILER_ID:GNU>:-fpch-preprocess>)
endif()

# The headers of gRPC, LibTorch and the JSON library take far longer to read than the code that uses
# them. They are compiled once per target; the project's own headers are not among them, so every file
# still has to include what it uses (clang-tidy reads it without them).
option(NNI_COMPRESSION_PRECOMPILE "Precompile third-party headers" ON)
set(NNI_COMPRESSION_STD_HEADERS <algorithm> <functional> <map> <memory> <optional> <string> <vector>)
set(NNI_COMPRESSION_ABSL_HEADERS "<absl/container/flat_hash_map.h>" "<absl/status/statusor.h>"
  "<absl/strings/str_cat.h>" "<absl/time/time.h>")
set(NNI_COMPRESSION_GRPC_HEADERS "<grpcpp/grpcpp.h>" "<google/protobuf/struct.pb.h>")
set(NNI_COMPRESSION_TORCH_HEADERS "<ATen/core/Tensor.h>" "<nlohmann/json.hpp>")
set(NNI_COMPRESSION_TEST_HEADERS "<gmock/gmock.h>" "<gtest/gtest.h>")

# nni_compression_precompile(target GROUP...), the groups being GRPC, TORCH and TEST.
function(nni_compression_precompile target)
  if(NNI_COMPRESSION_PRECOMPILE)
    set(headers ${NNI_COMPRESSION_STD_HEADERS} ${NNI_COMPRESSION_ABSL_HEADERS})
    foreach(group IN LISTS ARGN)
      list(APPEND headers ${NNI_COMPRESSION_${group}_HEADERS})
    endforeach()
    target_precompile_headers(${target} PRIVATE ${headers})
  endif()
endfunction()
