// `ferrite embed`.
#pragma once

#include "client/connection.h"
#include "client/console.h"
#include "client/embed_options.h"

namespace ferrite {

// Runs the command and returns its exit code. The first call that fails ends it; what was written
// until then are the rows of the inputs before.
int RunEmbed(const EmbedOptions& options, const ConnectionOptions& connection_options,
             const Console& console);

}  // namespace ferrite
