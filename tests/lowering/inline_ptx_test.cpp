// PTX templates take the place of the calls that stand for them, in text as Halide's compiler writes it and
// in what it really writes. No GPU is needed.
#include "lowering/inline_ptx.h"

#include <gtest/gtest.h>

#include <cstring>
#include <stdexcept>
#include <string>

namespace posattn {
namespace {

using Halide::Expr;
using Halide::Float;
using Halide::Var;
using Halide::Internal::Call;

const InlinePtx::Head kHead{"8.4", "sm_90a", "\t.maxntid 128, 1, 1\n"};

std::string name_of(const Expr &e) { return e.as<Call>()->name; }

// A module with one kernel, whose body is `code`.
std::string module_of(const std::string &code) {
  return ".version 7.0\n.target sm_80\n.address_size 64\n\n"
         ".visible .entry kernel(\n\t.param .u64 kernel_param_0,\n\t.param .u64 kernel_param_1\n)\n{\n"
         "\t.reg .b64 \t%rd<3>;\n\n// %bb.0:\n\tld.param.b64 \t%rd1, [kernel_param_1];\n" +
         code + "\tret;\n}\n";
}

std::string call_of(const std::string &name, const std::string &result, const std::string &first,
                    const std::string &second) {
  return "\t{ // callseq 4, 0\n\t.param .b32 param0;\n\tst.param.b32 \t[param0], " + first +
         ";\n\t.param .b32 param1;\n\tst.param.b32 \t[param1], " + second +
         ";\n\t.param .b32 retval0;\n\tcall.uni (retval0),\n\t" + name +
         ",\n\t(\n\tparam0,\n\tparam1\n\t);\n" +
         (result.empty() ? "" : "\tld.param.b32 \t" + result + ", [retval0];\n") + "\t} // callseq 4\n";
}

TEST(InlinePtx, TemplateTakesThePlaceOfItsCall) {
  InlinePtx ptx;
  const Expr e = ptx.pure(Float(32), "\tmax.f32 $r, $0, $1;", {1.f, 2.f});
  const std::string out = ptx.splice(module_of(call_of(name_of(e), "%r7", "%r5", "0f3F800000")), kHead);
  EXPECT_NE(out.find("// %bb.0:"), std::string::npos);
  EXPECT_NE(out.find("\tmax.f32 %r7, %r5, 0f3F800000;\n"), std::string::npos) << out;
  EXPECT_EQ(out.find("callseq"), std::string::npos);
  EXPECT_NE(out.find(".version 8.4\n.target sm_90a\n"), std::string::npos);
  EXPECT_NE(out.find("\t.maxntid 128, 1, 1\n{\n"), std::string::npos);
}

TEST(InlinePtx, EqualTemplatesAreOneFunction) {
  InlinePtx ptx;
  const Expr a = ptx.pure(Float(32), "\tneg.f32 $r, $0;", {1.f}),
             b = ptx.pure(Float(32), "\tneg.f32 $r, $0;", {2.f});
  const Expr c = ptx.effect("\tneg.f32 $r, $0;", {2.f});
  EXPECT_EQ(name_of(a), name_of(b));
  EXPECT_NE(name_of(a), name_of(c));
}

TEST(InlinePtx, UnusedValuesVanishAndEffectsStay) {
  InlinePtx ptx;
  const Expr value = ptx.pure(Float(32), "\tadd.f32 $r, $0, $1;", {1.f, 2.f});
  const Expr effect = ptx.effect("\tst.shared.b32 [$0], $1;", {1, 2});
  const std::string out = ptx.splice(
      module_of(call_of(name_of(value), "", "%r1", "%r2") + call_of(name_of(effect), "", "%r1", "%r2") +
                call_of(name_of(effect), "%r9", "%r3", "%r4")),
      kHead);
  EXPECT_EQ(out.find("add.f32"), std::string::npos);
  EXPECT_NE(out.find("\tst.shared.b32 [%r1], %r2;\n"), std::string::npos);
  // A token is a number all the same.
  EXPECT_NE(out.find("\tst.shared.b32 [%r3], %r4;\n\tmov.b32 \t%r9, 0;\n"), std::string::npos) << out;
}

TEST(InlinePtx, LabelsAndIndicesOfNamedRegisters) {
  InlinePtx ptx;
  ptx.declare_register(".f32 %S<4>");
  ptx.at_entry("\tmov.u32 %x, 0;\n");
  ptx.in_module(".extern .shared .b8 bytes[];");
  const Expr wait = ptx.effect("\tL$u: bra L$u;", {1, 2});
  const Expr read = ptx.read(Float(32), "\tmov.b32 $r, %S$0;", {1, 2});
  const std::string out = ptx.splice(
      module_of(call_of(name_of(wait), "", "%r1", "%r2") + call_of(name_of(wait), "", "%r1", "%r2") +
                call_of(name_of(read), "%r3", "2", "%r2")),
      kHead);
  EXPECT_NE(out.find("\tL0: bra L0;\n\tL1: bra L1;\n"), std::string::npos) << out;
  EXPECT_NE(out.find("\tmov.b32 %r3, %S2;\n"), std::string::npos);
  EXPECT_NE(out.find("{\n\t.reg .f32 %S<4>;\n"), std::string::npos);
  EXPECT_NE(out.find("// %bb.0:\n\tmov.u32 %x, 0;\n"), std::string::npos);
  EXPECT_NE(out.find(".address_size 64\n.extern .shared .b8 bytes[];\n"), std::string::npos);
  // An index that is no constant has no register.
  EXPECT_THROW(ptx.splice(module_of(call_of(name_of(read), "%r3", "%r8", "%r2")), kHead), std::runtime_error);
}

TEST(InlinePtx, MissingArgumentsAndUnknownCallsAreErrors) {
  InlinePtx ptx;
  const Expr e = ptx.pure(Float(32), "\tfma $r, $0, $1, $2;", {1.f, 2.f});
  EXPECT_THROW(ptx.splice(module_of(call_of(name_of(e), "%r7", "%r5", "%r6")), kHead), std::runtime_error);
  EXPECT_THROW(ptx.splice(module_of(call_of("posattn_ptx_99", "%r7", "%r5", "%r6")), kHead),
               std::runtime_error);
  // Other functions' calls stay as they are.
  const std::string other = call_of("vprintf", "%r7", "%r5", "%r6");
  EXPECT_NE(ptx.splice(module_of(other), kHead).find(other), std::string::npos);
}

TEST(InlinePtx, ParameterByValue) {
  InlinePtx ptx;
  const Expr e = ptx.effect("\tprefetch.tensormap [$@0];", {Expr(uint64_t{1}), 2});
  const std::string call = call_of(name_of(e), "", "%rd1", "%r2");
  const std::string out = ptx.splice(module_of(call + call), kHead);
  EXPECT_NE(out.find("\t.param .u64 kernel_param_0,\n\t.param .align 64 .b8 kernel_param_1[128]\n"),
            std::string::npos)
      << out;
  EXPECT_NE(out.find("\tmov.b64 \t%rd1, kernel_param_1;\n\tcvta.param.u64 \t%rd1, %rd1;\n"),
            std::string::npos);
  EXPECT_NE(out.find("\tprefetch.tensormap [%rd1];\n\tprefetch.tensormap [%rd1];\n"), std::string::npos);
  const std::string computed = call_of(name_of(e), "", "%rd2", "%r2");
  EXPECT_THROW(ptx.splice(module_of(computed), kHead), std::runtime_error);
}

TEST(InlinePtx, WhatStartsEarlyWaitsBeforeMemoryAndTakesNothingForConstant) {
  InlinePtx ptx;
  const std::string load = ".v4.b32 \t{%r1, %r2, %r3, %r4}, [%rd1];\n",
                    store = "\tst.global.b32 \t[%rd2], %r1;\n";
  const std::string in = module_of("\tcvta.to.global.u64 \t%rd1, %rd1;\n\tld.global.nc" + load + store +
                                   "$L__BB0_1:\n\tadd.s32 \t%r1, %r1, 1;\n" + store);
  InlinePtx::Head head = kHead;
  EXPECT_EQ(ptx.splice(in, head).find("griddepcontrol"), std::string::npos);
  EXPECT_NE(ptx.splice(in, head).find("ld.global.nc.v4"), std::string::npos);
  head.starts_early = true;
  const std::string out = ptx.splice(in, head);
  const std::string wait = "\tgriddepcontrol.wait;\n\tgriddepcontrol.launch_dependents;\n";
  EXPECT_NE(out.find("\tcvta.to.global.u64 \t%rd1, %rd1;\n" + wait + "\tld.global" + load + store),
            std::string::npos)
      << out;
  EXPECT_NE(out.find("$L__BB0_1:\n\tadd.s32 \t%r1, %r1, 1;\n" + wait + store), std::string::npos) << out;
}

TEST(InlinePtx, WhatHalideReallyWrites) {
  InlinePtx ptx;
  Var x("x"), block("block"), thread("thread");
  Halide::Func f("f");
  Halide::ImageParam in(Float(32), 1, "in");
  const Expr token = ptx.effect("\t// token $0", {x});
  f(x) = ptx.pure(Float(32), "\tex2.approx.f32 $r, $0;", {in(x)}) +
         ptx.read(Float(32), "\tmov.b32 $r, %S1; // $0", {token});
  f.gpu_tile(x, block, thread, 32);
  const Halide::Module module =
      f.compile_to_module({in}, "f", Halide::Target("x86-64-linux-cuda-cuda_capability_80-no_runtime"));
  const Halide::Buffer<> text = module.get_cuda_ptx_assembly_buffer();
  ASSERT_TRUE(text.defined());
  const std::string in_text(static_cast<const char *>(text.data()));
  ASSERT_NE(in_text.find("posattn_ptx_"), std::string::npos);
  const std::string out = ptx.splice(in_text, kHead);
  EXPECT_EQ(out.find("posattn_ptx_"), std::string::npos) << out;
  EXPECT_NE(out.find("\tex2.approx.f32 %"), std::string::npos);
  EXPECT_LT(out.find("// token %"), out.find(", %S1; // "));
}

}  // namespace
}  // namespace posattn
