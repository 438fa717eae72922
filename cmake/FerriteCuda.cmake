# The CUDA toolchain and the flags of our device code. Included only with FERRITE_CUDA.
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know how to ask nvcc 13 for it
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
if(CMAKE_VERSION VERSION_LESS 3.25.2)  # which expects a library that CUDA 13 no longer has
  add_library(CUDA::nvToolsExt INTERFACE IMPORTED)
endif()
find_package(CUDAToolkit 12.8 REQUIRED)  # the first that knows sm_120

add_library(ferrite_cuda_flags INTERFACE)
target_compile_options(ferrite_cuda_flags INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr;-lineinfo;-Werror=all-warnings;-Xcompiler=-Wall,-Wextra>")
target_include_directories(ferrite_cuda_flags INTERFACE ${CMAKE_SOURCE_DIR})
