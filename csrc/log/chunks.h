// Cuts log files into chunks of whole lines, read by several threads at once.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "log/buffer.h"
#include "log/problems.h"
#include "log/tokenize.h"

namespace esmm_fast::logs {

// One file of the log: a regular file, read by position; or, with `read`, a stream that is read in
// order.
struct Input {
  std::string name;  // for messages
  std::string path;
  // Reads up to `size` bytes to `to`; 0 at the end. Throws std::runtime_error with the reason if it
  // cannot.
  std::function<size_t(char* to, size_t size)> read;
  // Of a regular file, the lines that begin in this part of `parts`: parts are cut at multiples of
  // chunk_bytes, so that the chunks are those of the whole file. A part can be empty.
  uint32_t part = 0, parts = 1;
};

struct Chunk {
  uint64_t sequence = 0;  // 0, 1, 2, ... over all files
  uint32_t file = 0;
  uint64_t offset = 0;  // of text.begin in the file
  Text text;
  std::string failure;          // why the file cannot be read on behind this text, if so
  uint64_t failure_offset = 0;  // the byte of the file where
  Buffer<char> storage;
};

class ChunkReader {
 public:
  // chunk_bytes: text per chunk, up to the line that crosses its end.
  ChunkReader(std::vector<Input> inputs, size_t chunk_bytes);
  ~ChunkReader();

  // Fills `chunk` with the next one; false behind the last. Any thread. The chunks of one file
  // joined are the file, and where a regular file is cut depends on chunk_bytes alone.
  bool next(Chunk& chunk);

  // The first file that is not what it was when it was opened, if any. Call behind the last chunk.
  std::optional<Problem> changed_file() const;

  const std::string& name(uint32_t file) const { return inputs_[file].name; }

  // The bytes [first, second) of a regular file that are read.
  std::pair<uint64_t, uint64_t> range(uint32_t file) const;

 private:
  struct File;

  void read_at(Chunk& chunk, const File& file, uint64_t begin, uint64_t end) const;
  void read_stream(Chunk& chunk);
  void begin_file(uint32_t file);

  const std::vector<Input> inputs_;
  const size_t chunk_bytes_;
  std::vector<std::unique_ptr<File>> files_;

  std::mutex mutex_;  // guards what follows
  uint64_t sequence_ = 0;
  uint32_t file_ = 0;
  uint64_t position_ = 0;  // in file_: of the next chunk's first byte
  Buffer<char> carried_;   // stream: the begin of a line that the chunk before ended in
  size_t carried_bytes_ = 0;
};

}  // namespace esmm_fast::logs
