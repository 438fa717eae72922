# The manifests of deploy/k8s. Skipped without kubectl, or without what scripts/get_check_tools.sh gets.
set(kubernetes_test ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/kubernetes_test.py)
add_test(NAME kubernetes_policy COMMAND ${kubernetes_test} policy)
add_test(NAME kubernetes_schema COMMAND ${kubernetes_test} schema)
add_test(NAME kubernetes_checkov COMMAND ${kubernetes_test} checkov)
add_test(NAME kubernetes_config
         COMMAND ${kubernetes_test} config --server $<TARGET_FILE:ferrite-server>)
add_test(NAME kubernetes_probes
         COMMAND ${kubernetes_test} probes --server $<TARGET_FILE:ferrite-server>
                 --client $<TARGET_FILE:ferrite>)
add_test(NAME kubernetes_scaling
         COMMAND ${kubernetes_test} scaling --server $<TARGET_FILE:ferrite-server>
                 --client $<TARGET_FILE:ferrite>)
add_test(NAME fetch_model_test
         COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/fetch_model_test.py)
set_tests_properties(kubernetes_policy kubernetes_schema kubernetes_checkov kubernetes_config
  kubernetes_probes kubernetes_scaling fetch_model_test PROPERTIES TIMEOUT 180 LABELS deploy SKIP_RETURN_CODE 77)
