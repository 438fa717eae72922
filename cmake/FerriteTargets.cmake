# Flags that every target of ours shares, and helpers to declare targets.
add_library(ferrite_flags INTERFACE)
target_compile_options(ferrite_flags INTERFACE -Wall -Wextra -Wshadow -Wnon-virtual-dtor
                       -Woverloaded-virtual -Wcast-align -Werror -fno-omit-frame-pointer)
target_include_directories(ferrite_flags INTERFACE ${CMAKE_SOURCE_DIR})
if(FERRITE_SANITIZE)
  target_compile_options(ferrite_flags INTERFACE -fsanitize=${FERRITE_SANITIZE}
                         -fno-sanitize-recover=all)
  target_link_options(ferrite_flags INTERFACE -fsanitize=${FERRITE_SANITIZE})
  # What the sanitizers insert hides from g++ that a value was set (in its own <regex>, for one).
  target_compile_options(ferrite_flags INTERFACE -Wno-maybe-uninitialized)
  if(FERRITE_SANITIZE STREQUAL "thread")
    target_compile_options(ferrite_flags INTERFACE -Wno-tsan)
  endif()
endif()

set(FERRITE_TEST_ROOT "${CMAKE_SOURCE_DIR}" CACHE STRING
    "Where tests look for fixtures; \".\" for tests that run in another copy of the tree")

# Flags of tests. Some of what tests link asks for -pthread: all have it, so that they can share
# precompiled headers.
add_library(ferrite_test_flags INTERFACE)
target_compile_options(ferrite_test_flags INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-pthread>)

# Builds the tests labelled `quick`: what the sanitizer builds of CI run.
add_custom_target(quick_tests)

# ferrite_test(NAME <name> SOURCES ... LIBS ... [LABELS ...])
# One gtest binary and one ctest entry; tests find fixtures through FERRITE_SOURCE_DIR.
function(ferrite_test)
  cmake_parse_arguments(T "" "NAME;TIMEOUT" "SOURCES;LIBS;LABELS" ${ARGN})
  if(NOT T_TIMEOUT)
    set(T_TIMEOUT 120)
  endif()
  add_executable(${T_NAME} ${T_SOURCES})
  target_link_libraries(${T_NAME} PRIVATE ferrite_flags ferrite_test_flags ${T_LIBS} GTest::gmock GTest::gtest_main)
  if("integration" IN_LIST T_LABELS)
    ferrite_use_pch(ferrite_rpc_test_pch ${T_NAME})
  else()
    ferrite_use_pch(ferrite_test_pch ${T_NAME})
  endif()
  # Each test file has helpers of its own, whose names may be those of another file.
  set_target_properties(${T_NAME} PROPERTIES UNITY_BUILD OFF)
  target_compile_definitions(${T_NAME} PRIVATE FERRITE_SOURCE_DIR="${FERRITE_TEST_ROOT}")
  add_test(NAME ${T_NAME} COMMAND ${T_NAME})
  set_tests_properties(${T_NAME} PROPERTIES TIMEOUT ${T_TIMEOUT} LABELS "${T_LABELS}")
  # A program that could run none of its tests (no GPU, no model) did not pass.
  set_tests_properties(${T_NAME} PROPERTIES SKIP_REGULAR_EXPRESSION
    "\\[  PASSED  \\] 0 tests.\n(\\[  SKIPPED \\] [^\n]*\n)+[^[]*$")
  if("gpu" IN_LIST T_LABELS)  # some look at how much of its memory is free
    set_tests_properties(${T_NAME} PROPERTIES RESOURCE_LOCK gpu)
  endif()
  if("quick" IN_LIST T_LABELS)
    add_dependencies(quick_tests ${T_NAME})
  endif()
  if(FERRITE_SANITIZE STREQUAL "thread")
    set_tests_properties(${T_NAME} PROPERTIES ENVIRONMENT
      "TSAN_OPTIONS=ignore_noninstrumented_modules=1 halt_on_error=1 suppressions=${CMAKE_SOURCE_DIR}/tests/tsan_suppressions.txt")
  endif()
endfunction()
