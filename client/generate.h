// `ferrite generate`.
#pragma once

#include "client/connection.h"
#include "client/console.h"
#include "client/generate_options.h"

namespace ferrite {

// Runs the command and returns its exit code. Each piece of text, and each line of JSON, is written
// as it comes.
int RunGenerate(const GenerateOptions& options, const ConnectionOptions& connection_options,
                const Console& console);

}  // namespace ferrite
