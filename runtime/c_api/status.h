// Exceptions stop here: every C function runs its body through guarded().
#pragma once

#include <new>

#include "runtime/c_api/posattn.h"
#include "runtime/error.h"

namespace posattn::c_api {

// Keeps the text for posattn_last_error(), and returns the status.
posattn_status record_failure(posattn_status status, const char *text) noexcept;

template <typename Body>
posattn_status guarded(const Body &body) noexcept {
  try {
    body();
    return POSATTN_OK;
  } catch (const Error &error) {
    return record_failure(POSATTN_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc &) {
    return record_failure(POSATTN_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception &error) {
    return record_failure(POSATTN_INTERNAL_ERROR, error.what());
  } catch (...) {
    return record_failure(POSATTN_INTERNAL_ERROR, "unknown error");
  }
}

// The argument `what`, or an Error if it is null.
template <typename T>
T &required(T *pointer, const char *what) {
  if (!pointer) fail(what, ": expected a pointer, got null");
  return *pointer;
}

}  // namespace posattn::c_api
