#include "lowering/ptx_compile.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace posattn {
namespace {

using namespace Halide::Internal;
using Halide::Module;

std::string slurp(const std::string &path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

// The CUDA toolkit's assembler, or nothing.
std::string find_ptxas() {
  std::vector<std::string> folders = {"/usr/local/cuda/bin"};
  if (const char *path = std::getenv("PATH")) {
    std::istringstream all(path);
    for (std::string folder; std::getline(all, folder, ':');) folders.push_back(folder);
  }
  for (const std::string &folder : folders) {
    const std::string program = folder + "/ptxas";
    if (access(program.c_str(), X_OK) == 0) return program;
  }
  return "";
}

// Machine code for one card. An error where registers spill to memory, or where the assembler says that it
// waits for each matrix product (warnings C75xx): then the kernel would be right, and several times slower.
// Text that is embedded is only checked to be valid: what another assembler makes of it is not known.
std::string assemble(const std::string &ptxas, const std::string &ptx, const std::string &arch,
                     const std::string &stem, bool is_embedded) {
  const std::string source = stem + ".ptx", binary = stem + ".cubin", log = stem + ".ptxas.log";
  std::ofstream(source) << ptx;
  const std::string command =
      "'" + ptxas + "' -v -arch=" + arch + " '" + source + "' -o '" + binary + "' >'" + log + "' 2>&1";
  const int status = std::system(command.c_str());
  const std::string said = slurp(log), cubin = slurp(binary);
  if (std::getenv("POSATTN_PTXAS_VERBOSE")) std::cerr << said;
  const bool keep = std::getenv("POSATTN_KEEP_PTX") != nullptr;
  if (!keep) {
    for (const std::string &file : {source, binary, log}) std::remove(file.c_str());
  }
  // An assembler that is older than the card: the driver will do it.
  for (const char *too_old : {"Unsupported .version", "is not defined for option 'gpu-name'"}) {
    if (said.find(too_old) != std::string::npos) return "";
  }
  if (status != 0 || cubin.empty()) throw std::runtime_error("ptxas failed:\n" + said);
  const bool spills = said.find("bytes spill stores") != std::string::npos &&
                      said.find(" 0 bytes spill stores") == std::string::npos;
  if (is_embedded && (spills || said.find("(C75") != std::string::npos)) {
    throw std::runtime_error("ptxas made slow code:\n" + said);
  }
  return cubin;
}

// The size of the device code is an argument of the call that loads it.
class SetSourceSize : public IRMutator {
 public:
  explicit SetSourceSize(int size) : size_(size) {}
  using IRMutator::visit;
  Halide::Expr visit(const Call *op) override {
    if (op->name != "halide_cuda_initialize_kernels") return IRMutator::visit(op);
    std::vector<Halide::Expr> args = op->args;
    args.back() = size_;
    return Call::make(op->type, op->name, args, op->call_type);
  }

 private:
  int size_;
};

Module rewrite(const Module &module, const PtxKernel &kernel, const std::string &stem) {
  const std::string source = "cuda_gpu_source_kernels";
  Module out(module.name(), module.target(), module.get_metadata_name_map());
  int size = 0;
  for (const Halide::Buffer<> &buffer : module.buffers()) {
    if (buffer.name().rfind(source, 0) != 0) {
      out.append(buffer);
      continue;
    }
    const std::string in(static_cast<const char *>(buffer.data()), buffer.size_in_bytes() - 1);
    std::string code = kernel.ptx.splice(in, kernel.ptx_head);
    code += '\0';
    if (std::getenv("POSATTN_KEEP_PTX")) {
      std::ofstream(stem + ".in.ptx") << in;
      std::ofstream(stem + ".out.ptx") << code.c_str();
    }
    if (const std::string ptxas = find_ptxas(); !ptxas.empty()) {
      const std::string binary =
          assemble(ptxas, code.c_str(), kernel.assemble_for, stem, !kernel.embeds_text);
      if (!kernel.embeds_text && !binary.empty()) code = binary;
    }
    size = static_cast<int>(code.size());
    Halide::Buffer<uint8_t> replacement(size, buffer.name());
    std::memcpy(replacement.data(), code.data(), code.size());
    out.append(replacement);
  }
  for (LoweredFunc function : module.functions()) {
    std::vector<LoweredArgument> arguments;
    for (LoweredArgument &argument : function.args) {
      if (argument.is_output() && !kernel.stores_outputs) continue;  // the tokens
      if (kernel.stored_to.count(argument.name) > 0) argument.kind = Halide::Argument::OutputBuffer;
      arguments.push_back(argument);
    }
    function.args = arguments;
    function.body = SetSourceSize(size).mutate(function.body);
    out.append(function);
  }
  return out;
}

}  // namespace

void compile_ptx(AbstractGenerator &generator, const std::string &function, const std::string &folder) {
  const Module module = generator.build_module(function);
  const auto *kernel = dynamic_cast<const PtxKernel *>(&generator);
  if (!kernel) throw std::runtime_error(generator.name() + " is not a PtxKernel");
  const std::string stem = folder + "/" + function;
  rewrite(module, *kernel, stem).compile({{Halide::OutputFileType::static_library, stem + ".a"}});
}

}  // namespace posattn
