// The door of schema.cpp, in plain C for ctypes.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// 0: `answer` is the grammar (GBNF, root "root"); 1: one line that says what is wrong with the schema. Valid until the
// thread's next call.
int32_t llamaext_schema_to_grammar(const char * schema, const char ** answer);

#ifdef __cplusplus
}
#endif
