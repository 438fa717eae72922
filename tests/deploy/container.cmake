# What is cheap to check of the Dockerfile and of what scripts/check_container.sh executes it with.
add_test(NAME container_test
         COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/container_test.py)
set_tests_properties(container_test PROPERTIES TIMEOUT 60 LABELS deploy)
