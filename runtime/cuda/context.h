// A GPU's context as calls use it: made current for a while, with the functions that are loaded in it.
#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_map>

#include "runtime/cuda/driver.h"
#include "runtime/cuda/stream.h"

namespace posattn::cuda {

// What is known of a context, for as long as the process lives: contexts are few.
class ContextState {
 public:
  ContextState(Context context, Device device);

  Context handle() const { return context_; }
  int capability() const { return capability_; }  // 10 * major + minor
  int ordinal() const { return device_; }
  int multiprocessors() const { return multiprocessors_; }
  const std::string &name() const { return name_; }

  // The function of that name in the module whose text or binary is `image`, ready for so many bytes of
  // shared memory. Modules are loaded once. Thread-safe; throws Error.
  Function function(const void *image, const char *name, int shared_bytes);

 private:
  struct Key {
    const void *image;
    const char *name;  // by address: there is one for each place that launches
    bool operator==(const Key &other) const { return image == other.image && name == other.name; }
  };
  struct Hash {
    size_t operator()(const Key &key) const {
      return std::hash<const void *>()(key.image) * 31 + std::hash<const void *>()(key.name);
    }
  };
  struct Loaded {
    Function function;
    int shared_bytes;  // that it may have
  };
  Loaded load(const void *image, const char *name);

  Context context_;
  Device device_;
  int capability_ = 0, multiprocessors_ = 0, most_shared_bytes_ = 0;
  std::string name_;
  std::mutex mutex_;
  std::unordered_map<const void *, Module> modules_;
  std::unordered_map<Key, Loaded, Hash> functions_;
};

// For its lifetime: loading what a launch needs is no error while this thread captures a graph.
class OutsideOfCapture {
 public:
  OutsideOfCapture();
  ~OutsideOfCapture();
  OutsideOfCapture(const OutsideOfCapture &) = delete;
  OutsideOfCapture &operator=(const OutsideOfCapture &) = delete;

 private:
  int mode_;
};

// Makes the stream's context current for its own lifetime.
class Scope {
 public:
  explicit Scope(const CudaStream &stream);
  ~Scope();
  Scope(const Scope &) = delete;
  Scope &operator=(const Scope &) = delete;

  ContextState &context() const { return *state_; }
  Stream stream() const { return stream_; }

 private:
  ContextState *state_ = nullptr;
  Stream stream_;
  bool pushed_ = false;
};

// That memory is on the scope's GPU, or at least within its reach. Throws Error that names it.
void check_address(const char *name, const void *data, const Scope &scope);

}  // namespace posattn::cuda
