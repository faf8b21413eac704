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
