// JSON schema to grammar, by the engine's own converter: a library of its own, because only the process that owns the
// conversations needs it and what it is linked with.
#include "schema.h"

#include <json-schema-to-grammar.h>

#include <exception>
#include <string>

#define LLAMAEXT_EXPORT extern "C" __attribute__((visibility("default")))

LLAMAEXT_EXPORT int32_t llamaext_schema_to_grammar(const char * schema, const char ** answer) {
    thread_local std::string text;
    try {
        text    = json_schema_to_grammar(common_json::parse(schema), true);
        *answer = text.c_str();
        return 0;
    } catch (const std::exception & refusal) {
        text    = refusal.what();
        *answer = text.c_str();
        return 1;
    }
}
