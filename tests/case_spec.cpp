// What a case is in words, and how one is drawn.
#include <algorithm>
#include <sstream>

#include "tests/case.h"

namespace posattn::oracle {
namespace {

const char *name_of_layout(Layout layout) {
  const char *names[] = {"bhtd", "bthd", "packed", "padded", "reversed", "repeated"};
  return names[static_cast<int>(layout)];
}

std::string mask_text(const char *name, const MaskSpec &mask, bool with_type) {
  if (!mask.given) return "";
  std::string text = std::string(" ") + name + "(";
  for (int d = 4 - mask.rank; d < 4; ++d) text += mask.broadcast[static_cast<size_t>(d)] ? '1' : "bhij"[d];
  if (with_type) text += std::string(" ") + posattn::name_of(mask.type);
  if (mask.transposed) text += " transposed";
  return text + ")";
}

MaskSpec random_mask(Random &random) {
  MaskSpec mask;
  mask.given = true;
  mask.rank = static_cast<int>(random.pick({4, 4, 4, 3, 2, 2, 1, 0}));
  for (bool &one : mask.broadcast) one = random.chance(0.3);
  mask.type = random.pick({DType::f32, DType::f32, DType::bf16, DType::f16});
  mask.transposed = random.chance(0.1);
  return mask;
}

int64_t random_length(Random &random) {
  if (random.chance(0.35)) return random.pick<int64_t>({1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 129});
  if (random.chance(0.1)) return random.pick<int64_t>({255, 256, 257, 511, 513});
  return random.chance(0.3) ? random.integer(100, 600) : random.integer(1, 100);
}

int64_t random_dim(Random &random) {
  if (random.chance(0.6)) return random.pick<int64_t>({32, 64, 64, 96, 128, 128});
  if (random.chance(0.3)) return random.pick<int64_t>({1, 8, 40, 59, 80, 127, 256});
  return random.integer(1, 256);
}

}  // namespace

std::string describe(const CaseSpec &s) {
  std::ostringstream text;
  text << "seed " << s.seed << ": " << posattn::name_of(s.type) << " B" << s.batch << " H" << s.query_heads
       << "/" << s.kv_heads << " T" << s.queries << "x" << s.keys << " D" << s.head_dim << "/" << s.value_dim
       << " " << name_of_layout(s.layout) << "->" << name_of_layout(s.out_layout);
  for (const std::string &branch : s.branches) {
    text << " " << branch;
    if (branch == "relative") {
      text << "(" << s.relative_max_distance << (s.relative_per_head ? " per head" : "")
           << (s.relative_plus ? " plus" : " minus") << ")";
    } else if (branch == "t5") {
      text << "(" << s.t5_buckets << " " << s.t5_max_distance
           << (s.t5_bidirectional ? " both ways" : " causal") << ")";
    }
  }
  if (s.rotary_dim > 0)
    text << " rope(" << s.rotary_dim << (s.rope_layout == Rope::Layout::half ? " half" : " interleaved")
         << ")";
  if (s.positions != PositionKind::none) {
    const char *kinds[] = {"", "arange", "shifted", "fractional", "scattered", "times", "far", "islands"};
    const char *shapes[] = {"", "P", "1 P", "B P"};
    text << " positions(" << kinds[static_cast<int>(s.positions)] << " " << posattn::name_of(s.position_type)
         << " " << shapes[s.position_rank] << ")";
  }
  if (s.q_position_mask) text << " q_position_mask";
  if (s.k_position_mask) text << " k_position_mask";
  text << mask_text("keep", s.keep, false) << mask_text("block", s.block, false)
       << mask_text("add", s.add, true) << mask_text("dense", s.dense, true);
  if (s.hidden_rows) text << " hidden_rows";
  if (s.key_keep) text << " key_keep";
  if (s.key_block) text << " key_block";
  if (s.key_add) text << " key_add";
  if (s.shared_key_masks) text << " (1 Tk)";
  if (s.key_lengths) text << " key_lengths";
  if (s.causal == Causal::bottom_right) text << " causal";
  if (s.causal == Causal::top_left) text << " causal(top-left)";
  if (s.window_left >= 0 || s.window_right >= 0)
    text << " window(" << s.window_left << "," << s.window_right << ")";
  if (s.scale) text << " scale " << *s.scale;
  if (s.softcap > 0) text << " softcap " << s.softcap;
  text << " logits " << s.logit_std;
  if (s.value_offset != 0) text << " values+" << s.value_offset;
  if (s.weights != Weights::none) text << (s.weights == Weights::mean ? " mean weights" : " weights");
  if (!s.lse) text << " no lse";
  return text.str();
}

CaseSpec random_spec(uint64_t seed, const std::vector<std::vector<std::string>> &branch_sets) {
  Random random(seed * 2 + 1);
  CaseSpec s;
  s.seed = seed;
  s.type = random.pick({DType::f32, DType::f32, DType::bf16, DType::f16});
  s.batch = random.pick<int64_t>({1, 1, 2, 3});
  s.kv_heads = random.pick<int64_t>({1, 1, 2, 3});
  s.query_heads = s.kv_heads * random.pick<int64_t>({1, 1, 2, 3, 4, 7});
  s.queries = random.chance(0.2) ? 1 : random_length(random);
  s.keys = random.chance(0.4) ? s.queries : random_length(random);
  s.head_dim = random_dim(random);
  s.value_dim = random.chance(0.7) ? s.head_dim : random_dim(random);
  // A case costs some milliseconds.
  const auto work = [&] {
    return s.batch * s.query_heads * s.queries * s.keys * (s.head_dim + s.value_dim + 32);
  };
  while (work() > 12000000) (s.queries > s.keys ? s.queries : s.keys) = std::max(s.queries, s.keys) * 2 / 3;

  s.layout = random.pick({Layout::bhtd, Layout::bhtd, Layout::bthd, Layout::packed, Layout::padded,
                          Layout::reversed, Layout::repeated});
  s.out_layout = random.pick({Layout::bhtd, Layout::bthd, Layout::padded});
  s.branches = random.pick(branch_sets);
  s.relative_max_distance = random.pick<int64_t>({0, 1, 5, 16, 128, 1000});
  s.relative_per_head = random.chance(0.5);
  s.relative_plus = random.chance(0.5);
  s.t5_bidirectional = random.chance(0.5);
  s.t5_buckets = random.pick<int64_t>({8, 32, 40});
  s.t5_max_distance = random.pick<int64_t>({40, 128, 500});
  if (random.chance(0.3) && s.head_dim > 1) {
    s.rotary_dim = random.chance(0.6) ? s.head_dim / 2 * 2 : 2 * random.integer(1, s.head_dim / 2);
    s.rope_layout = random.pick({Rope::Layout::interleaved, Rope::Layout::half});
  }
  const bool positional = !s.branches.empty() || s.rotary_dim > 0;
  if (random.chance(positional ? 0.6 : 0.1)) {
    s.positions =
        random.pick({PositionKind::arange, PositionKind::shifted, PositionKind::fractional,
                     PositionKind::scattered, PositionKind::times, PositionKind::far, PositionKind::islands});
    // Which side of an integer an offset lies on is not for float32 to say.
    const auto truncates = [](const std::string &name) { return name != "alibi"; };
    if (s.positions == PositionKind::times && std::any_of(s.branches.begin(), s.branches.end(), truncates)) {
      s.positions = PositionKind::fractional;
    }
    // Penalties of 2^27 for all keys that are visible leave float32 nothing of the logits.
    const bool alibi = std::find(s.branches.begin(), s.branches.end(), "alibi") != s.branches.end();
    if (s.positions == PositionKind::islands && alibi) s.positions = PositionKind::far;
    switch (s.positions) {
      case PositionKind::fractional:
      case PositionKind::times:
        s.position_type = random.pick({DType::f32, DType::f64});
        break;
      case PositionKind::far:
      case PositionKind::islands:
        s.position_type = random.pick({DType::i64, DType::f64, DType::i32});
        break;
      default:
        s.position_type = random.pick({DType::f32, DType::f64, DType::i64, DType::i32});
    }
    s.position_rank = static_cast<int>(random.integer(1, 3));
  }
  if (random.chance(positional ? 0.3 : 0.05)) s.q_position_mask = random.chance(0.7);
  if (random.chance(positional ? 0.3 : 0.05)) s.k_position_mask = random.chance(0.7);

  if (random.chance(0.2)) s.keep = random_mask(random);
  if (random.chance(0.15)) s.block = random_mask(random);
  if (random.chance(0.25)) s.add = random_mask(random);
  if (random.chance(0.15)) s.dense = random_mask(random);
  s.hidden_rows = random.chance(0.3);
  s.key_keep = random.chance(0.12);
  s.key_block = random.chance(0.12);
  s.key_add = random.chance(0.12);
  s.key_lengths = random.chance(0.2);
  s.shared_key_masks = random.chance(0.3);
  if (random.chance(0.45)) s.causal = random.pick({Causal::bottom_right, Causal::top_left});
  if (random.chance(0.25)) {
    s.window_left = random.chance(0.3) ? -1 : random.integer(0, random.pick<int64_t>({3, 40, 700}));
    s.window_right = random.chance(0.3) ? -1 : random.integer(0, random.pick<int64_t>({3, 40, 700}));
  }
  if (random.chance(0.15)) s.scale = random.pick({0.f, 0.01f, 0.3f, -0.1f});
  if (random.chance(0.15)) s.softcap = random.pick({1.f, 20.f, 50.f});
  s.logit_std = random.pick({1.0, 1.0, 0.1, 4.0, 8.0});
  // Of one product or two the formula's error is too small a measure: a kernel rounds once more to scale
  // them.
  if (s.head_dim < 8) s.logit_std = std::min(s.logit_std, 1.0);
  if (random.chance(0.2)) s.value_offset = random.pick({3.0, -10.0});
  s.weights = random.pick({Weights::none, Weights::none, Weights::mean, Weights::heads});
  s.lse = random.chance(0.7);
  return s;
}

}  // namespace posattn::oracle
