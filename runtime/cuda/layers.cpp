#include "runtime/cuda/layers.h"

#include <list>

#include "runtime/attend_problem.h"
#include "runtime/cuda/layer_call.h"
#include "runtime/error.h"
#include "runtime/layers/attention_call.h"
#include "runtime/layers/position_rows.h"

namespace posattn {
namespace cuda {
namespace {

constexpr uintptr_t kWorkspaceAlignment = 256;

// Arguments on the host, copied to a GPU: what is one tensor there is one here, too.
class Uploads {
 public:
  explicit Uploads(const CudaStream &stream) : stream_(stream) {}
  void move(TensorView &view) {
    if (view.empty()) return;
    for (const Pair &known : pairs_) {
      if (same_view(known.host, view)) {
        view = known.device.view();
        return;
      }
    }
    pairs_.push_back({view, CudaTensor(view, stream_)});
    view = pairs_.back().device.view();
  }

 private:
  struct Pair {
    TensorView host;
    CudaTensor device;
  };
  const CudaStream &stream_;
  std::list<Pair> pairs_;
};

// What a GPU does not look at, and the host can.
void check_host_values(const ForwardArgs &args, const PositionEncoder *encoder) {
  const int64_t batch = args.query.rank() > 0 ? args.query.size(0) : 0;
  const auto side = [&](const TensorView &positions, const TensorView &mask, const char *what) {
    if (positions.empty() || positions.rank() < 1) return;
    const int64_t count = positions.size(-1);
    check_positions(positions, what, batch, count);
    if (!encoder || (!mask.empty() && (mask.rank() < 1 || mask.size(-1) != count))) return;
    for (int64_t row = 0; row < std::max(rows_of(positions), rows_of(mask)); ++row) {
      for (int64_t i = 0; i < count; ++i) {
        if (mask_at(mask, row, i)) encoder->check(position_at(positions, row, i), what);
      }
    }
  };
  side(args.q_positions, args.q_position_mask, "q_positions");
  side(args.k_positions, args.k_position_mask, "k_positions");
  const TensorView &lengths = args.key_lengths;
  if (lengths.empty() || lengths.rank() != 1 || lengths.size(0) != batch) return;
  if (lengths.dtype() != DType::i32 && lengths.dtype() != DType::i64) return;
  AttendProblem problem{};
  problem.shape.batch = batch;
  problem.shape.keys =
      (args.cache ? args.cache->length() : 0) + (args.key.rank() == 3 ? args.key.size(1) : 0);
  AttendArgs only_lengths;
  only_lengths.key_lengths = lengths;
  check_values(only_lengths, problem);
}

class CudaLayer : public PlacedLayer {
 public:
  CudaLayer(const LayerWeights &weights, const LayerDims &dims, bool add_zero_attn, PositionSet positions,
            const CudaStream &stream)
      : PlacedLayer(std::move(positions)),
        stream_(stream),
        memory_(weights, dims, add_zero_attn, positions_, stream) {
    facts_.dims = dims;
    facts_.encodes = memory_.encoder.has_value();
    if (memory_.rope) facts_.rope = &*memory_.rope;
    if (!memory_.dense.empty()) facts_.dense = memory_.dense.view();
    for (const auto &branch : memory_.branches) facts_.branches.push_back(branch.get());
    facts_.extra_keys = (memory_.has_bias_key ? 1 : 0) + (memory_.has_zero_key ? 1 : 0);
    ordinal_ = Scope(stream).context().ordinal();
  }

  void forward_into(const ForwardArgs &args, const ForwardOutputs &outputs) const override {
    if (args.scratch)
      fail("scratch: expected none for a layer on a GPU, whose memory is CudaCall::workspace");
    const CudaCall call = call_of(args);
    const Scope scope(call.stream);
    check_gpu(scope);
    const int64_t size = measure(args, outputs, call.stream, scope);
    if (!call.workspace) return run_in_pool(args, outputs, call.stream, scope, size);
    if (call.workspace_size < static_cast<size_t>(size)) {
      fail("workspace: expected at least ", size, " bytes, got ", call.workspace_size);
    }
    if (reinterpret_cast<uintptr_t>(call.workspace) % kWorkspaceAlignment != 0) {
      fail("workspace: expected memory aligned to ", kWorkspaceAlignment, " bytes");
    }
    check_address("workspace", call.workspace, scope);
    run(args, outputs, call.stream, scope, call.workspace);
  }

  size_t workspace_size(const ForwardArgs &args) const override {
    const CudaCall call = call_of(args);
    const Scope scope(call.stream);
    check_gpu(scope);
    // With as few outputs as there may be: each one that is given saves memory.
    ForwardArgs without_lse = args;
    without_lse.need_lse = false;
    ForwardOutputs outputs;
    const int64_t batch = args.query.rank() == 3 ? args.query.size(0) : 0;
    const int64_t queries = args.query.rank() == 3 ? args.query.size(1) : 0;
    const int64_t keys = (args.cache ? args.cache->length() : 0) +
                         (args.key.rank() == 3 ? args.key.size(1) : 0) + facts_.extra_keys;
    const LayerDims &d = facts_.dims;
    outputs.out = MutableTensorView(nullptr, d.type, {batch, queries, d.embed});
    if (args.need_weights == Weights::mean) {
      outputs.weights = MutableTensorView(nullptr, d.type, {batch, queries, keys});
    } else if (args.need_weights == Weights::heads) {
      outputs.weights = MutableTensorView(nullptr, d.type, {batch, d.heads, queries, keys});
    }
    return static_cast<size_t>(measure(without_lse, outputs, call.stream, scope));
  }

  void forward_from_host(const ForwardArgs &args, const ForwardOutputs &outputs) const override {
    check_host_values(args, positions_.encoder());
    const CudaStream stream = call_of(args).stream;
    ForwardArgs moved = args;
    moved.scratch = nullptr;
    Uploads uploads(stream);
    for (TensorView *view : {&moved.query, &moved.key, &moved.value, &moved.q_positions, &moved.k_positions,
                             &moved.q_position_mask, &moved.k_position_mask, &moved.keep_mask,
                             &moved.block_mask, &moved.add_mask, &moved.dense_bias, &moved.key_keep_mask,
                             &moved.key_block_mask, &moved.key_add_mask, &moved.key_lengths}) {
      uploads.move(*view);
    }
    const auto like = [&](const MutableTensorView &host) {
      if (host.empty()) return CudaTensor();
      int64_t shape[kMaxRank];
      for (int d = 0; d < host.rank(); ++d) shape[d] = host.size(d);
      return CudaTensor(host.dtype(), host.rank(), shape, stream);
    };
    const CudaTensor out = like(outputs.out), weights = like(outputs.weights), lse = like(outputs.lse);
    forward_into(moved, {out.view(), weights.view(), lse.view()});
    out.download(outputs.out);
    if (!weights.empty()) weights.download(outputs.weights);
    if (!lse.empty()) lse.download(outputs.lse);
  }

  std::unique_ptr<KvCacheBase> make_cache(int64_t batch, int64_t capacity,
                                          CacheFormat format) const override {
    if (format != CacheFormat::exact) fail("cache: those of 8-bit integers are for CPUs only");
    const LayerDims &d = facts_.dims;
    return std::make_unique<CudaKvCache>(batch, d.kv_heads, d.head_dim, d.head_dim, capacity, d.type,
                                         stream_);
  }

 private:
  CudaCall call_of(const ForwardArgs &args) const {
    CudaCall call;
    call.stream = stream_;
    return args.cuda ? *args.cuda : call;
  }
  void check_gpu(const Scope &scope) const {
    if (scope.context().ordinal() == ordinal_) return;
    fail("stream: expected one of GPU ", ordinal_, ", where the layer is, got one of GPU ",
         scope.context().ordinal());
  }
  int64_t measure(const ForwardArgs &args, const ForwardOutputs &outputs, const CudaStream &stream,
                  const Scope &scope) const {
    CudaSteps steps(*this, memory_, stream, scope, nullptr);
    AttentionCall(facts_, args, outputs, steps).run(steps);
    return steps.memory_taken();
  }
  void run(const ForwardArgs &args, const ForwardOutputs &outputs, const CudaStream &stream,
           const Scope &scope, void *workspace) const {
    CudaSteps steps(*this, memory_, stream, scope, workspace);
    AttentionCall(facts_, args, outputs, steps).run(steps);
  }
  void run_in_pool(const ForwardArgs &args, const ForwardOutputs &outputs, const CudaStream &stream,
                   const Scope &scope, int64_t size) const {
    const Driver &d = driver();
    Address memory = 0;
    check(d.MemAllocAsync(&memory, static_cast<size_t>(size), scope.stream()), "workspace");
    try {
      run(args, outputs, stream, scope, reinterpret_cast<void *>(memory));
    } catch (...) {
      d.MemFreeAsync(memory, scope.stream());
      throw;
    }
    check(d.MemFreeAsync(memory, scope.stream()), "workspace");
  }

  CudaStream stream_;
  LayerMemory memory_;
  int ordinal_ = 0;
};

}  // namespace
}  // namespace cuda

std::shared_ptr<const PlacedLayer> CudaDevice::place(const LayerWeights &weights, const LayerDims &dims,
                                                     bool add_zero_attn, PositionSet positions) const {
  return std::make_shared<const cuda::CudaLayer>(weights, dims, add_zero_attn, std::move(positions), stream_);
}

}  // namespace posattn
