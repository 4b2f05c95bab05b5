// Cuts log files into chunks of whole lines: see chunks.h.
//
// A regular file: chunk i owns the lines that begin in bytes [i * C, (i + 1) * C). Its thread finds
// the first of them and reads on to the end of the last, so no thread waits for another, and inside
// one huge line only its owner works. A stream: chunks are read one after the other, the begun line
// at the end is carried to the next.
#include "log/chunks.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <stdexcept>
#include <system_error>

namespace esmm_fast::logs {
namespace {

// Beyond this it is no log: bounds the memory of one chunk.
constexpr size_t kLongestLine = size_t{256} << 20;
constexpr size_t kReadOn = size_t{64} << 10;  // bytes read at a time to find the end of a line

std::string too_long() {
  return "a line is longer than " + std::to_string(kLongestLine) +
         " bytes; expected a log of lines that end with '\\n', got no line end";
}

const char* last_newline(const char* begin, const char* end) {
  return begin == end ? nullptr : static_cast<const char*>(::memrchr(begin, '\n', end - begin));
}

}  // namespace

struct ChunkReader::File {
  int descriptor = -1;
  uint64_t size = 0;
  uint64_t begin = 0, end = 0;  // of the part that is read
  timespec modified{};

  File(const Input& input, uint64_t chunk_bytes) {
    if (input.read) return;
    descriptor = ::open(input.path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0) throw std::system_error(errno, std::generic_category(), input.name);
    const struct stat status = now();
    size = status.st_size;
    modified = status.st_mtim;
    const uint64_t chunks = (size + chunk_bytes - 1) / chunk_bytes;
    begin = chunks * input.part / input.parts * chunk_bytes;
    end = std::min(size, chunks * (input.part + 1) / input.parts * chunk_bytes);
    ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);
  }
  ~File() {
    if (descriptor >= 0) ::close(descriptor);
  }

  struct stat now() const {
    struct stat status{};
    if (::fstat(descriptor, &status) != 0)
      throw std::system_error(errno, std::generic_category(), "fstat");
    return status;
  }
};

ChunkReader::ChunkReader(std::vector<Input> inputs, size_t chunk_bytes)
    : inputs_(std::move(inputs)), chunk_bytes_(chunk_bytes) {
  for (const Input& input : inputs_) files_.push_back(std::make_unique<File>(input, chunk_bytes));
  begin_file(0);
}

ChunkReader::~ChunkReader() = default;

std::pair<uint64_t, uint64_t> ChunkReader::range(uint32_t file) const {
  return {files_[file]->begin, files_[file]->end};
}

// Goes to the first file from `file` on of which there is something to read, or to say: an empty
// file is a failure of its own.
void ChunkReader::begin_file(uint32_t file) {
  const auto nothing = [](const File& f) {
    return f.descriptor >= 0 && f.size > 0 && f.begin == f.end;
  };
  while (file < files_.size() && nothing(*files_[file])) ++file;
  file_ = file;
  position_ = file < files_.size() ? files_[file]->begin : 0;
}

bool ChunkReader::next(Chunk& chunk) {
  chunk.text = Text();
  chunk.failure.clear();
  std::unique_lock lock(mutex_);
  if (file_ == inputs_.size()) return false;
  chunk.sequence = sequence_++;
  chunk.file = file_;
  chunk.offset = position_;
  const File& file = *files_[file_];
  if (file.descriptor < 0) {
    read_stream(chunk);
    return true;
  }
  const uint64_t begin = position_;
  const uint64_t end = std::min<uint64_t>(file.end, begin + chunk_bytes_);
  position_ = end;
  if (end == file.end) begin_file(file_ + 1);
  lock.unlock();
  read_at(chunk, file, begin, end);
  return true;
}

void ChunkReader::read_at(Chunk& chunk, const File& file, uint64_t begin, uint64_t end) const {
  const uint64_t first =
      begin ? begin - 1 : 0;  // the byte before tells whether a line begins at `begin`
  uint64_t position = first;
  size_t size = 0;
  const auto read_to = [&](uint64_t until) {
    chunk.storage.reserve(size + (until - position) + 1 + kTextPadding, size);
    while (position < until) {
      const ssize_t got =
          ::pread(file.descriptor, chunk.storage.data() + size, until - position, position);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) {
        chunk.failure =
            got < 0 ? std::string("the file cannot be read; expected its bytes, got: ") +
                          std::strerror(errno)
                    : "the file became shorter while it was read; expected " +
                          std::to_string(file.size) + " bytes, got " + std::to_string(position);
        chunk.failure_offset = position;
        return false;
      }
      size += got;
      position += got;
    }
    return true;
  };

  bool complete = read_to(end);
  if (file.size == 0) chunk.failure = "the file is empty; expected at least one line, got 0 bytes";
  const char* text = chunk.storage.data();
  size_t line = 0;  // in storage: where the chunk's first line begins
  if (begin > 0) {
    const void* found =
        size ? std::memchr(text, '\n', std::min<size_t>(size, end - begin)) : nullptr;
    line = found ? static_cast<const char*>(found) - text + 1 : size;
  }
  size_t stop = size;
  bool no_final_newline = false;
  if (line < size && text[size - 1] != '\n') {  // the last line goes on behind the chunk
    const char* newline = last_newline(text + line, text + size);
    const size_t last_line = newline ? newline - text + 1 : line;
    size_t searched = size;
    newline = nullptr;
    while (complete && !newline && position < file.size) {
      complete = read_to(
          std::min<uint64_t>(file.size, position + std::max<size_t>(kReadOn, size - last_line)));
      text = chunk.storage.data();
      newline = static_cast<const char*>(std::memchr(text + searched, '\n', size - searched));
      searched = size;
      if ((newline ? newline - text : size) - last_line > kLongestLine) {
        complete = false;
        newline = nullptr;
        chunk.failure = too_long();
        chunk.failure_offset = first + last_line;
      }
    }
    if (newline) {
      stop = newline - text + 1;
    } else if (complete) {
      no_final_newline = true;
      chunk.storage.data()[size++] = '\n';
      stop = size;
    } else {
      stop = last_line;  // what can be read ends inside this line
    }
  }
  chunk.storage.reserve(stop + kTextPadding, stop);
  std::memset(chunk.storage.data() + stop, 0, kTextPadding);
  chunk.offset = first + line;
  chunk.text = {chunk.storage.data() + std::min(line, stop), chunk.storage.data() + stop,
                no_final_newline};
}

void ChunkReader::read_stream(Chunk& chunk) {
  size_t size = carried_bytes_;
  chunk.storage.reserve(std::max(size, chunk_bytes_) + 1 + kTextPadding, 0);
  if (size) std::memcpy(chunk.storage.data(), carried_.data(), size);
  carried_bytes_ = 0;
  size_t stop = 0;  // behind the last newline
  bool ended = false;
  while (!ended && (size < chunk_bytes_ || stop == 0)) {
    const size_t wanted = size < chunk_bytes_ ? chunk_bytes_ - size : std::max(kReadOn, size);
    chunk.storage.reserve(size + wanted + 1 + kTextPadding, size);
    size_t got = 0;
    try {
      got = inputs_[chunk.file].read(chunk.storage.data() + size, wanted);
    } catch (const std::runtime_error& error) {
      chunk.failure = error.what();
      chunk.failure_offset = position_ + size;
    }
    const char* text = chunk.storage.data();
    if (const char* newline = last_newline(text + size, text + size + got))
      stop = newline - text + 1;
    size += got;
    ended = got == 0;
    if (!ended && size - stop > kLongestLine) {
      chunk.failure = too_long();
      chunk.failure_offset = position_ + stop;
      ended = true;
    }
  }
  char* text = chunk.storage.data();
  bool no_final_newline = false;
  if (!ended) {
    carried_.reserve(size - stop, 0);
    carried_bytes_ = size - stop;
    if (carried_bytes_) std::memcpy(carried_.data(), text + stop, carried_bytes_);
  } else if (chunk.failure.empty() && stop < size) {
    no_final_newline = true;
    text[size++] = '\n';
    stop = size;
  } else if (chunk.failure.empty() && size == 0 && position_ == 0) {
    chunk.failure = "the file is empty; expected at least one line, got 0 bytes";
  }
  std::memset(text + stop, 0, kTextPadding);
  chunk.text = {text, text + stop, no_final_newline};
  position_ += stop;
  if (ended) begin_file(file_ + 1);
}

std::optional<Problem> ChunkReader::changed_file() const {
  for (size_t f = 0; f < files_.size(); ++f) {
    const File& file = *files_[f];
    if (file.descriptor < 0) continue;
    const struct stat status = file.now();
    const auto size = static_cast<uint64_t>(status.st_size);
    if (size == file.size && status.st_mtim.tv_sec == file.modified.tv_sec &&
        status.st_mtim.tv_nsec == file.modified.tv_nsec)
      continue;
    return Problem{
        Reason::kFile, Place{static_cast<uint32_t>(f), 1, 0},
        "the file changed while it was read; expected the " + std::to_string(file.size) +
            " bytes of the start, got " +
            (size == file.size ? "as many that were written since" : std::to_string(size))};
  }
  return std::nullopt;
}

}  // namespace esmm_fast::logs
