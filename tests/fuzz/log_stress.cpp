// Many threads through the parser at once, for ThreadSanitizer: good and bad logs, cut small, with
// promotions, duplicates, readers that stop early, and blocks that outlive their stream.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "log/newlines.h"
#include "log/stream.h"

using namespace esmm_fast::logs;

namespace {

std::string memory_file(const std::string& text, int& descriptor) {
  descriptor = memfd_create("log", 0);
  if (write(descriptor, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    std::abort();
  return "/proc/self/fd/" + std::to_string(descriptor);
}

std::string list(std::mt19937& random, const std::vector<std::string>& fields) {
  const int count = static_cast<int>(random() % 9);
  std::string text = std::to_string(count) + ",";
  for (int i = 0; i < count; ++i) {
    if (i) text += '\1';
    text += fields[random() % fields.size()] + '\2' + std::to_string(random() % 100000);
    if (random() % 500 == 0) text += "00000000";  // beyond 32 bits: the layout widens
    text += random() % 3 ? "\0031.0" : "\0030.69315";
  }
  return text + "\n";
}

void one_round(unsigned seed) {
  std::mt19937 random(seed);
  const std::vector<std::string> common_fields = {"101", "109_14"}, fields = {"205", "210"};
  std::string common_text, text;
  char key[17];
  for (int i = 0; i < 50; ++i) {
    std::snprintf(key, sizeof key, "%016x", i % 45);  // repeated rows, mostly with other contents
    common_text += std::string(key) + "," + list(random, common_fields);
  }
  for (int i = 0; i < 300; ++i) {
    std::snprintf(key, sizeof key, "%016x", static_cast<unsigned>(random() % 50));
    text += std::to_string(i) + ",1,0," + key + "," + list(random, fields);
    if (random() % 200 == 0) text += "bad\n";
  }
  int files[2];
  const std::string paths[2] = {memory_file(common_text, files[0]), memory_file(text, files[1])};
  count_newlines(paths[1], 3);
  auto keys = std::make_shared<KeyMap>();
  std::vector<std::shared_ptr<Block>> kept;
  for (const bool common : {true, false}) {
    StreamOptions options;
    options.common = common;
    options.fields = common ? common_fields : fields;
    options.other_fields = common ? fields : common_fields;
    options.layout = {{0, 1}, {0, 0}, false};
    options.threads = 1 + static_cast<int>(random() % 7);
    options.chunk_bytes = 30 + random() % 600;
    options.skip_bad_lines = common || random() % 2;
    options.keep_rejects = options.skip_bad_lines;
    LogStream stream({Input{"log", paths[!common], {}}}, options, keys, false);
    const size_t stop_after = random() % 3 ? SIZE_MAX : random() % 20;
    std::shared_ptr<Block> block;
    for (size_t blocks = 0; common || blocks < stop_after;) {
      const auto step = stream.next(block, std::chrono::milliseconds(100));
      if (step == LogStream::Step::kEnd) break;
      if (step == LogStream::Step::kNothingYet) continue;
      ++blocks;
      if (random() % 4 == 0) kept.push_back(block);
      if (kept.size() > 10) kept.erase(kept.begin());
    }
    if (!stream.problem() && (common || stop_after == SIZE_MAX)) stream.counts(0);
  }
  std::thread([blocks = std::move(kept)]() mutable { blocks.clear(); }).join();
  for (int file : files) close(file);
}

}  // namespace

int main(int arguments, char** argument) {
  const unsigned rounds = arguments > 1 ? static_cast<unsigned>(std::atoi(argument[1])) : 200;
  for (unsigned round = 0; round < rounds; ++round) one_round(round);
  std::printf("%u rounds\n", rounds);
}
