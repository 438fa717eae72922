#include "engine/tokenizer/metaspace.h"

#include "absl/strings/str_cat.h"
#include "engine/status_macros.h"
#include "engine/tokenizer/utf8.h"

namespace ferrite {

absl::StatusOr<MetaspaceOptions> ParseMetaspace(const JsonCursor& component) {
  MetaspaceOptions options;
  ASSIGN_OR_RETURN(options.replacement, component.String("replacement"));
  if (!IsOneCharacter(options.replacement)) {
    return component.Invalid("replacement is not one character");
  }
  if (const auto scheme = component.Find("prepend_scheme"); scheme.has_value()) {
    ASSIGN_OR_RETURN(const std::string name, scheme->String());
    if (name == "first") {
      options.prepend = MetaspacePrepend::kFirst;
    } else if (name == "never") {
      options.prepend = MetaspacePrepend::kNever;
    } else if (name != "always") {
      return scheme->Unimplemented(absl::StrCat("\"", name, "\" is not supported"));
    }
  }
  ASSIGN_OR_RETURN(const bool add_prefix_space, component.BoolOr("add_prefix_space", true));
  if (!add_prefix_space && options.prepend != MetaspacePrepend::kNever) {
    return component.Invalid("add_prefix_space is false, but prepend_scheme is not \"never\"");
  }
  ASSIGN_OR_RETURN(options.split, component.BoolOr("split", true));
  return options;
}

}  // namespace ferrite
