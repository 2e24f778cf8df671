// What the original model makes of some sentences; make_fixture.py wrote it.
#pragma once

#include <fstream>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "runtime/safetensors.h"

namespace sentences {

struct Fixture {
  std::vector<std::string> texts;
  std::vector<std::vector<int32_t>> ids;
  posattn::SafeTensors file =
      posattn::SafeTensors::open("examples/sentences/testdata/embeddings.safetensors");
  posattn::TensorView embeddings = file.get("embeddings");  // (texts, width) f32

  Fixture() {
    std::ifstream json("examples/sentences/testdata/sentences.json");
    for (const auto &item : nlohmann::json::parse(json)) {
      texts.push_back(item.at("text"));
      ids.push_back(item.at("ids"));
    }
  }
};

}  // namespace sentences
