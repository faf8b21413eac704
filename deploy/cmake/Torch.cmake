# The target nni_compression_torch: LibTorch's headers and its CPU library. Its own package file asks
# for features that only its own build needs. Sets NNI_COMPRESSION_TORCH_FOUND.
find_path(NNI_COMPRESSION_TORCH_INCLUDE ATen/core/Tensor.h HINTS ${CMAKE_PREFIX_PATH} PATH_SUFFIXES include)
find_library(NNI_COMPRESSION_TORCH_CPU torch_cpu HINTS ${CMAKE_PREFIX_PATH} PATH_SUFFIXES lib)
find_library(NNI_COMPRESSION_C10 c10 HINTS ${CMAKE_PREFIX_PATH} PATH_SUFFIXES lib)
set(NNI_COMPRESSION_TORCH_FOUND OFF)
if(NNI_COMPRESSION_TORCH_INCLUDE AND NNI_COMPRESSION_TORCH_CPU AND NNI_COMPRESSION_C10)
  set(NNI_COMPRESSION_TORCH_FOUND ON)
  if(NOT TARGET nni_compression_torch)
    # Imported, so that a package that names it does not have to carry it.
    add_library(nni_compression_torch INTERFACE IMPORTED)
    target_include_directories(nni_compression_torch SYSTEM INTERFACE ${NNI_COMPRESSION_TORCH_INCLUDE})
    target_link_libraries(nni_compression_torch INTERFACE ${NNI_COMPRESSION_TORCH_CPU} ${NNI_COMPRESSION_C10})
  endif()
endif()
