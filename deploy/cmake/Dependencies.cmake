# Packages that the project stands on. All are Debian 12's; newer ones work too.
find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(nlohmann_json 3 CONFIG REQUIRED)
find_package(ZLIB REQUIRED)  # its crc32
find_package(OpenSSL REQUIRED COMPONENTS Crypto)  # its SHA-256
find_package(SQLite3 REQUIRED)

if(NNI_COMPRESSION_BUILD_SERVER)
  find_package(spdlog CONFIG REQUIRED)
  # LibTorch's package file asks for features that only its own build needs; what is used here is
  # the headers and the CPU library.
  find_path(NNI_COMPRESSION_TORCH_INCLUDE ATen/core/Tensor.h REQUIRED
    HINTS ${CMAKE_PREFIX_PATH} PATH_SUFFIXES include)
  find_library(NNI_COMPRESSION_TORCH_CPU torch_cpu REQUIRED HINTS ${CMAKE_PREFIX_PATH} PATH_SUFFIXES lib)
  find_library(NNI_COMPRESSION_C10 c10 REQUIRED HINTS ${CMAKE_PREFIX_PATH} PATH_SUFFIXES lib)
  find_package(OpenMP REQUIRED)  # the one that LibTorch uses
  add_library(nni_compression_torch INTERFACE)
  target_include_directories(nni_compression_torch SYSTEM INTERFACE ${NNI_COMPRESSION_TORCH_INCLUDE})
  target_link_libraries(nni_compression_torch INTERFACE ${NNI_COMPRESSION_TORCH_CPU} ${NNI_COMPRESSION_C10})
endif()

if(NNI_COMPRESSION_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()
if(NNI_COMPRESSION_BUILD_BENCHMARKS)
  find_package(benchmark REQUIRED)
endif()
