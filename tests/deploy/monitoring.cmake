# Dashboards, rules, the runbook, and all of them against a running server and Prometheus. Skipped
# without the tools of scripts/get_check_tools.sh.
add_test(NAME dashboards_are_generated
         COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/deploy/grafana/generate.py --check)
add_test(NAME monitoring_dashboards_test
         COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/monitoring_dashboards_test.py)
add_test(NAME monitoring_rules_test
         COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/monitoring_rules_test.py)
add_test(NAME monitoring_test
         COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/monitoring_test.py
                 $<TARGET_FILE:ferrite-server> $<TARGET_FILE:ferrite>)
set_tests_properties(dashboards_are_generated monitoring_dashboards_test monitoring_rules_test
  monitoring_test PROPERTIES TIMEOUT 180 LABELS deploy SKIP_RETURN_CODE 77)
