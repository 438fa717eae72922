# Everything Ferrite links, from the distribution's packages. docs/architecture.md says why each.
find_package(Threads REQUIRED)
find_package(absl REQUIRED CONFIG)
find_package(Protobuf REQUIRED)
find_package(gRPC REQUIRED CONFIG)
find_package(yaml-cpp REQUIRED CONFIG)
find_package(nlohmann_json REQUIRED CONFIG)
find_package(CLI11 REQUIRED CONFIG)
find_package(OpenSSL REQUIRED)
if(FERRITE_BUILD_TESTS)
  find_package(GTest REQUIRED)
endif()

# The distribution's dnnl-config.cmake asks for OpenCL, which we do not use.
find_path(FERRITE_DNNL_INCLUDE dnnl.hpp REQUIRED)
find_library(FERRITE_DNNL_LIBRARY dnnl REQUIRED)
add_library(ferrite_dnnl INTERFACE)
target_include_directories(ferrite_dnnl SYSTEM INTERFACE ${FERRITE_DNNL_INCLUDE})
target_link_libraries(ferrite_dnnl INTERFACE ${FERRITE_DNNL_LIBRARY} gomp)

# yaml-cpp 0.7 exports a plain name, 0.8 a namespaced one.
if(TARGET yaml-cpp::yaml-cpp)
  set(FERRITE_YAML_CPP yaml-cpp::yaml-cpp)
else()
  set(FERRITE_YAML_CPP yaml-cpp)
endif()

# The distributions package neither with a CMake file that both of them have.
find_path(FERRITE_PCRE2_INCLUDE pcre2.h REQUIRED)
find_library(FERRITE_PCRE2_LIBRARY pcre2-8 REQUIRED)
find_path(FERRITE_UTF8PROC_INCLUDE utf8proc.h REQUIRED)
find_library(FERRITE_UTF8PROC_LIBRARY utf8proc REQUIRED)
add_library(ferrite_text INTERFACE)
target_include_directories(ferrite_text SYSTEM INTERFACE
  ${FERRITE_PCRE2_INCLUDE} ${FERRITE_UTF8PROC_INCLUDE})
target_link_libraries(ferrite_text INTERFACE
  ${FERRITE_PCRE2_LIBRARY} ${FERRITE_UTF8PROC_LIBRARY})

# Compiled into us: nothing of it is needed at run time.
find_path(FERRITE_XXHASH_INCLUDE xxhash.h REQUIRED)

# The distribution's prometheus-cpp-config.cmake asks for CURL, which only pushing needs.
find_path(FERRITE_PROMETHEUS_INCLUDE prometheus/text_serializer.h REQUIRED)
find_library(FERRITE_PROMETHEUS_CORE prometheus-cpp-core REQUIRED)
add_library(ferrite_prometheus INTERFACE)
target_include_directories(ferrite_prometheus SYSTEM INTERFACE ${FERRITE_PROMETHEUS_INCLUDE})
target_link_libraries(ferrite_prometheus INTERFACE ${FERRITE_PROMETHEUS_CORE})

# Its headers depend on the flags that the library was built with.
find_package(PkgConfig REQUIRED)
pkg_check_modules(FERRITE_HTTPLIB REQUIRED IMPORTED_TARGET cpp-httplib)

if(FERRITE_BUILD_TESTS)
  # The first python3 that has what tests import: scripts/setup.sh installs that for the
  # distribution's, before which PATH may have another.
  function(ferrite_has_modules result python)
    execute_process(COMMAND ${python} -c "import google.protobuf, grpc, numpy"
                    RESULT_VARIABLE code OUTPUT_QUIET ERROR_QUIET)
    if(NOT code EQUAL 0)
      set(${result} FALSE PARENT_SCOPE)
    endif()
  endfunction()
  find_program(Python3_EXECUTABLE python3 VALIDATOR ferrite_has_modules)
  find_package(Python3 REQUIRED COMPONENTS Interpreter)
endif()
