# Precompiled headers: reading other people's headers is most of what a build of ours costs. Every
# file has all its includes itself all the same: FERRITE_PRECOMPILED_HEADERS=OFF builds without.
option(FERRITE_PRECOMPILED_HEADERS "Read common headers once" ON)

set(FERRITE_PCH_CORE <algorithm> <functional> <memory> <optional> <string> <utility> <vector>
    <absl/status/statusor.h> <absl/strings/str_cat.h>)
set(FERRITE_PCH_RPC <grpcpp/grpcpp.h> <ferrite/v1/control.grpc.pb.h>
    <ferrite/v1/inference.grpc.pb.h>)
set(FERRITE_PCH_TEST <gmock/gmock.h> <gtest/gtest.h>)

# ferrite_pch(<name> LIBS ... HEADERS ...): headers read once, for ferrite_use_pch.
function(ferrite_pch name)
  cmake_parse_arguments(P "" "" "LIBS;HEADERS" ${ARGN})
  if(FERRITE_PRECOMPILED_HEADERS)
    add_library(${name} OBJECT EXCLUDE_FROM_ALL ${CMAKE_SOURCE_DIR}/cmake/precompiled.cc)
    target_link_libraries(${name} PRIVATE ferrite_flags ${P_LIBS})
    target_precompile_headers(${name} PRIVATE ${P_HEADERS})
  endif()
endfunction()

# ferrite_use_pch(<name> <target>...): for targets with the flags of ferrite_flags.
function(ferrite_use_pch name)
  foreach(target ${ARGN})
    if(FERRITE_PRECOMPILED_HEADERS)
      target_precompile_headers(${target} REUSE_FROM ${name})
      # g++ forgets that precompiled headers are the system's, and sees errors in its std::string
      # (GCC bug 105651).
      target_compile_options(${target} PRIVATE
        $<$<COMPILE_LANGUAGE:CXX>:-Wno-array-bounds$<SEMICOLON>-Wno-restrict$<SEMICOLON>-Wno-stringop-overread$<SEMICOLON>-Wno-stringop-overflow>)
    endif()
  endforeach()
endfunction()
