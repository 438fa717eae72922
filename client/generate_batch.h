// `ferrite generate --batch`.
#pragma once

#include "client/connection.h"
#include "client/console.h"
#include "client/generate_options.h"
#include "ferrite/v1/inference.pb.h"

namespace ferrite {

// Each line that is not blank is a GenerateRequest in JSON, merged over `defaults`. Prints a line
// of JSON for each, in order: its `index`, and the GenerateResponse's members or `error` with
// `code` and `message`. A line that is no request fails alone. Returns the exit code: that of the
// commonest failure.
int RunGenerateBatch(const GenerateOptions& options, v1::GenerateRequest defaults,
                     const ConnectionOptions& connection_options, const Console& console);

}  // namespace ferrite
