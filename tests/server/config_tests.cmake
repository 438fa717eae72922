ferrite_test(NAME server_config_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/config_test.cc ${CMAKE_CURRENT_LIST_DIR}/command_line_test.cc
  LIBS ferrite_server_config
  LABELS server)
ferrite_test(NAME server_log_test
  SOURCES ${CMAKE_CURRENT_LIST_DIR}/log_test.cc
  LIBS ferrite_server_config nlohmann_json::nlohmann_json
  LABELS server)
