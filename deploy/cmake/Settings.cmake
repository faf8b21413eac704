# How the project's own code is compiled. Third-party code never sees these settings.
add_library(nni_compression_settings INTERFACE)
target_compile_features(nni_compression_settings INTERFACE cxx_std_17)
target_include_directories(nni_compression_settings INTERFACE
  $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>)
target_compile_options(nni_compression_settings INTERFACE
  -Wall -Wextra -Wno-unused-parameter
  # Bit-equality with PyTorch is promised, and a fused multiply-add rounds once less.
  -ffp-contract=off
  # Programs name their source files as the repository does, wherever it lies; so the compiler cache
  # serves every clone.
  "-fmacro-prefix-map=${PROJECT_SOURCE_DIR}/="
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>
  # It takes files that are compiled together for headers.
  $<$<CXX_COMPILER_ID:GNU>:-Wno-subobject-linkage>
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

# Reading headers takes longer than compiling the code that uses them, so the files of a target are
# compiled sixteen at a time: what is at namespace scope in a file has a name of its own in the target.
# For an editor that wants each file's command, -DCMAKE_UNITY_BUILD=OFF.
if(NOT DEFINED CMAKE_UNITY_BUILD)
  set(CMAKE_UNITY_BUILD ON)
  set(CMAKE_UNITY_BUILD_BATCH_SIZE 16)
endif()
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release)
endif()

find_program(NNI_COMPRESSION_CCACHE ccache)
if(NNI_COMPRESSION_CCACHE)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${NNI_COMPRESSION_CCACHE})
endif()
