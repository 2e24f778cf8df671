// Embeds sentences with all-MiniLM-L6-v2 and prints how similar they are to each other.
#include <iostream>

#include "CLI/CLI.hpp"
#include "examples/sentences/encoder.h"
#include "examples/sentences/model_dir.h"
#include "examples/sentences/report.h"
#include "runtime/error.h"
#include "runtime/kernel_registry.h"
#include "runtime/threads.h"

namespace {

constexpr int kBadArguments = 2;

struct Options {
  std::vector<std::string> sentences;
  std::string model_dir = sentences::bundled_model_dir(), target;
  int threads = 0, repeat = 1;
};

void run(const Options &options) {
  if (options.model_dir.empty()) posattn::fail("--model: expected a directory, got nothing");
  posattn::set_num_threads(options.threads);
  posattn::set_target(options.target);
  const sentences::Encoder encoder(options.model_dir);

  sentences::Timings timings;
  std::vector<bool> truncated;
  posattn::Tensor embeddings;
  for (int i = 0; i < options.repeat; ++i) {
    timings = {};  // of the last run, when caches are warm and threads are there
    embeddings = encoder.embed(options.sentences, &timings, &truncated);
  }
  for (size_t i = 0; i < truncated.size(); ++i)
    if (truncated[i])
      std::cerr << "sentence " << i + 1 << " is longer than " << encoder.max_tokens()
                << " tokens: only its beginning counts\n";

  sentences::print_similarity(std::cout, sentences::cosines(embeddings.view()), options.sentences);
  std::cout << '\n';
  sentences::print_timings(std::cout, timings);
}

}  // namespace

int main(int argc, char **argv) {
  CLI::App app("Cosine similarity of sentences, by all-MiniLM-L6-v2 on posattn's attention layers.");
  Options options;
  app.add_option("sentence", options.sentences, "Two or more sentences, each one argument")->required();
  app.add_option("--model", options.model_dir, "Directory with model.safetensors, config.json and vocab.txt");
  app.add_option("--threads", options.threads, "Threads, 0 for one a core")->check(CLI::Range(0, 1024));
  app.add_option("--target", options.target, "Kernels to use: avx512, avx2 or sse41; the best by default");
  app.add_option("--repeat", options.repeat, "Compute this often; the last run's times are shown")
      ->check(CLI::Range(1, 1000000));
  try {
    app.parse(argc, argv);
    run(options);
  } catch (const CLI::CallForHelp &help) {
    return app.exit(help);
  } catch (const std::exception &error) {
    std::cerr << "sentences: " << error.what() << '\n';
    return kBadArguments;
  }
  return 0;
}
