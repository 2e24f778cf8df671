#include "generators/branch.h"

#include <sstream>
#include <stdexcept>

namespace posattn {
namespace {

std::map<std::string, Branch> &branches() {
  static std::map<std::string, Branch> all;
  return all;
}

}  // namespace

RegisterBranch::RegisterBranch(Branch branch) {
  const std::string name = branch.name;
  if (!branches().emplace(name, std::move(branch)).second) {
    throw std::runtime_error("two branches are called '" + name + "'");
  }
}

const Branch &find_branch(const std::string &name) {
  const auto found = branches().find(name);
  if (found == branches().end()) {
    std::string known;
    for (const auto &[other, branch] : branches()) known += " " + other;
    throw std::runtime_error("no branch is called '" + name + "'; this generator has:" + known);
  }
  return found->second;
}

std::vector<std::string> split_branches(const std::string &set) {
  std::vector<std::string> names;
  std::istringstream text(set);
  for (std::string name; std::getline(text, name, '+');) {
    if (name != "none") names.push_back(name);
  }
  return names;
}

}  // namespace posattn
