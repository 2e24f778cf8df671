#include "tests/cli/runner.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>

#include "runtime/safetensors.h"
#include "tests/random.h"

namespace posattn::cli_test {

namespace fs = std::filesystem;

namespace {

std::string program() {
  const char *other = std::getenv("POSATTN_PROGRAM");
  return other ? other : "tools/posattn";  // where Bazel puts it
}

std::string contents(const std::string &path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

void redirect(int descriptor, const std::string &path) {
  if (!std::freopen(path.c_str(), "w", descriptor == STDOUT_FILENO ? stdout : stderr)) _exit(126);
}

}  // namespace

Finished posattn(const Arguments &arguments) {
  const Folder folder;
  const std::string out = folder.path("out"), err = folder.path("err"), name = program();
  std::vector<char *> argv = {const_cast<char *>(name.c_str())};
  for (const std::string &argument : arguments) argv.push_back(const_cast<char *>(argument.c_str()));
  argv.push_back(nullptr);

  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("cannot fork");
  if (child == 0) {
    redirect(STDOUT_FILENO, out);
    redirect(STDERR_FILENO, err);
    execv(name.c_str(), argv.data());
    _exit(127);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, contents(out), contents(err)};
}

Folder::Folder() {
  const char *parent = std::getenv("TEST_TMPDIR");
  std::string name = std::string(parent ? parent : "/tmp") + "/posattn.XXXXXX";
  if (!mkdtemp(name.data())) throw std::runtime_error("cannot make " + name);
  path_ = name;
}

Folder::~Folder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::vector<std::string> Folder::files() const {
  std::vector<std::string> names;
  for (const auto &entry : fs::directory_iterator(path_)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

std::string Folder::save(const std::string &name,
                         const std::vector<std::pair<std::string, TensorView>> &tensors) const {
  save_safetensors(path(name), tensors);
  return path(name);
}

Tensor random_tensor(uint64_t seed, DType type, std::initializer_list<int64_t> shape, double deviation) {
  oracle::Random random(seed);
  Tensor numbers(DType::f32, shape);
  for (int64_t i = 0; i < numbers.view().num_elements(); ++i)
    numbers.as<float>()[i] = static_cast<float>(deviation * random.normal());
  return numbers.to(type);
}

Tensor random_mask(uint64_t seed, std::initializer_list<int64_t> shape, double probability) {
  oracle::Random random(seed);
  Tensor mask(DType::boolean, shape);
  for (int64_t i = 0; i < mask.view().num_elements(); ++i) mask.as<uint8_t>()[i] = random.chance(probability);
  return mask;
}

}  // namespace posattn::cli_test
