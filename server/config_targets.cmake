# Configuration and logging: what the server needs before it serves.
add_library(ferrite_server_config STATIC
  command_line.cc
  config.cc
  config_builder.cc
  config_keys.cc
  config_values.cc
  log.cc)
target_link_libraries(ferrite_server_config
  PUBLIC ferrite_flags absl::statusor absl::strings absl::time
  PRIVATE CLI11::CLI11 nlohmann_json::nlohmann_json ${FERRITE_YAML_CPP})
target_compile_definitions(ferrite_server_config PRIVATE FERRITE_VERSION="${PROJECT_VERSION}")
