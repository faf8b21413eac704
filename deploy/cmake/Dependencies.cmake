# Packages that the project stands on. All are Debian 12's; newer ones work too.
find_package(Threads REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(absl CONFIG REQUIRED)
find_package(nlohmann_json 3 CONFIG REQUIRED)
find_package(CLI11 2.1 CONFIG REQUIRED)  # command lines of compressionctl
find_package(ZLIB REQUIRED)  # its crc32
find_package(OpenSSL REQUIRED COMPONENTS Crypto SSL)  # its SHA-256, and checks of certificates
find_package(SQLite3 REQUIRED)

if(NNI_COMPRESSION_BUILD_SERVER)
  find_package(spdlog CONFIG REQUIRED)
  find_package(prometheus-cpp CONFIG REQUIRED)
  # The HTTP client of --healthcheck. The server of metrics and probes is our own: this one's, and
  # that of prometheus-cpp, limit neither connections nor the time and size of a request.
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(httplib REQUIRED IMPORTED_TARGET cpp-httplib)
  include(Torch)
  if(NOT NNI_COMPRESSION_TORCH_FOUND)
    message(FATAL_ERROR "LibTorch was not found; set CMAKE_PREFIX_PATH to its folder")
  endif()
  find_package(OpenMP REQUIRED)  # the one that LibTorch uses
endif()

if(NNI_COMPRESSION_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()
if(NNI_COMPRESSION_BUILD_BENCHMARKS)
  find_package(benchmark REQUIRED)
endif()
