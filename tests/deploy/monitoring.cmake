# Dashboards, rules and the runbook. Skipped without the tools of scripts/get_check_tools.sh.
add_test(NAME dashboards_are_generated
         COMMAND ${Python3_EXECUTABLE} ${CMAKE_SOURCE_DIR}/deploy/grafana/generate.py --check)
add_test(NAME monitoring_rules_test
         COMMAND ${Python3_EXECUTABLE} ${CMAKE_CURRENT_SOURCE_DIR}/monitoring_rules_test.py)
set_tests_properties(dashboards_are_generated monitoring_rules_test PROPERTIES
  TIMEOUT 120 LABELS deploy SKIP_RETURN_CODE 77)
