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

# Optimising the tests themselves takes longer than it saves.
set(NNI_COMPRESSION_TEST_OPTIONS -O0)

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
# them. They are compiled once for all targets that ask for the same; the project's own headers are not
# among them, so every file still has to include what it uses (clang-tidy reads it without them).
option(NNI_COMPRESSION_PRECOMPILE "Precompile third-party headers" ON)
set(NNI_COMPRESSION_COMMON_HEADERS
  <algorithm> <functional> <map> <memory> <optional> <string> <vector>
  "<absl/container/flat_hash_map.h>" "<absl/status/statusor.h>" "<absl/strings/str_cat.h>"
  "<absl/time/time.h>")
set(NNI_COMPRESSION_COMMON_LIBRARIES absl::flat_hash_map absl::statusor absl::strings absl::time)
set(NNI_COMPRESSION_GRPC_HEADERS "<grpcpp/grpcpp.h>" "<google/protobuf/struct.pb.h>")
set(NNI_COMPRESSION_GRPC_LIBRARIES gRPC::grpc++ protobuf::libprotobuf)
set(NNI_COMPRESSION_TORCH_HEADERS "<ATen/core/Tensor.h>" "<nlohmann/json.hpp>")
set(NNI_COMPRESSION_TORCH_LIBRARIES nni_compression_torch nlohmann_json::nlohmann_json)
set(NNI_COMPRESSION_TEST_HEADERS "<gmock/gmock.h>" "<gtest/gtest.h>")
set(NNI_COMPRESSION_TEST_LIBRARIES GTest::gmock)

# nni_compression_precompile(target GROUP...), the groups being GRPC, TORCH and TEST. A target of the
# group TEST is an executable, any other a library: they are compiled with different flags.
function(nni_compression_precompile target)
  if(NOT NNI_COMPRESSION_PRECOMPILE)
    return()
  endif()
  list(JOIN ARGN _ name)
  set(owner nni_compression_headers_${name})
  if(NOT TARGET ${owner})
    set(source ${PROJECT_BINARY_DIR}/${owner}.cc)
    file(GENERATE OUTPUT ${source} CONTENT "int main() { return 0; }\n")
    if("TEST" IN_LIST ARGN)
      add_executable(${owner} EXCLUDE_FROM_ALL ${source})
      target_compile_options(${owner} PRIVATE ${NNI_COMPRESSION_TEST_OPTIONS})
    else()
      add_library(${owner} OBJECT EXCLUDE_FROM_ALL ${source})
    endif()
    target_link_libraries(${owner} PRIVATE nni_compression_settings)
    foreach(group COMMON ${ARGN})
      target_link_libraries(${owner} PRIVATE ${NNI_COMPRESSION_${group}_LIBRARIES})
      target_precompile_headers(${owner} PRIVATE ${NNI_COMPRESSION_${group}_HEADERS})
    endforeach()
  endif()
  target_precompile_headers(${target} REUSE_FROM ${owner})
endfunction()
