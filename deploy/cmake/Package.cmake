# Installation and the CMake package NniCompression.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/NniCompression)

foreach(part client proto server_platform wire)
  set_target_properties(nni_compression_${part} PROPERTIES EXPORT_NAME ${part})
endforeach()
install(TARGETS nni_compression_client nni_compression_proto nni_compression_server_platform
    nni_compression_wire
  EXPORT NniCompressionTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(EXPORT NniCompressionTargets NAMESPACE NniCompression:: DESTINATION ${package_dir})
if(NNI_COMPRESSION_BUILD_SERVER)
  # For plugins. A set of its own: programs that only use the client need no LibTorch.
  set_target_properties(nni_compression_compression PROPERTIES EXPORT_NAME compression)
  install(TARGETS nni_compression_compression
    EXPORT NniCompressionPluginTargets ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
  install(EXPORT NniCompressionPluginTargets NAMESPACE NniCompression:: DESTINATION ${package_dir})
  install(FILES ${CMAKE_CURRENT_LIST_DIR}/Torch.cmake DESTINATION ${package_dir})
  install(DIRECTORY compression ${PROJECT_BINARY_DIR}/compression/include/compression
    DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/nni_compression
    FILES_MATCHING PATTERN "*.h" PATTERN "*-inl.h" EXCLUDE PATTERN examples EXCLUDE)
endif()
configure_package_config_file(
  ${CMAKE_CURRENT_LIST_DIR}/NniCompressionConfig.cmake.in ${PROJECT_BINARY_DIR}/NniCompressionConfig.cmake
  INSTALL_DESTINATION ${package_dir})
write_basic_package_version_file(${PROJECT_BINARY_DIR}/NniCompressionConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/NniCompressionConfig.cmake
  ${PROJECT_BINARY_DIR}/NniCompressionConfigVersion.cmake DESTINATION ${package_dir})

# The client's headers, the contract that they use, and the contract itself for other languages.
install(DIRECTORY client/cpp/include/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(DIRECTORY ${PROJECT_BINARY_DIR}/proto/nni DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  FILES_MATCHING PATTERN "*.pb.h")
install(FILES proto/nni/compression/v1/compression.proto
  DESTINATION ${CMAKE_INSTALL_DATADIR}/nni_compression/nni/compression/v1)

install(TARGETS compressionctl RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
