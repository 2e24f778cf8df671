"""Writes the Unicode tables of the tokenizer as a C++ include file; needs Python's standard library only.

BERT's uncased vocabulary was made from text that was split at white space and punctuation, decomposed (NFD),
freed of non-spacing marks and lower-cased. This evaluates those steps for every code point, so that the C++
needs one look-up each. Hangul syllables are left out: they decompose by arithmetic.
"""

import sys
import unicodedata


def ranges(predicate):
    """The code points for which predicate(category, character) holds, as inclusive (first, last) pairs."""
    found = []
    for code in range(sys.maxunicode + 1):
        if predicate(unicodedata.category(chr(code)), chr(code)):
            if found and found[-1][1] == code - 1:
                found[-1][1] = code
            else:
                found.append([code, code])
    return found


def folded(character):
    decomposed = unicodedata.normalize("NFD", character)
    return "".join(c.lower() for c in decomposed if unicodedata.category(c) != "Mn")


def main(path):
    hangul = range(0xAC00, 0xD7A4)
    surrogates = range(0xD800, 0xE000)
    with open(path, "w") as out:
        out.write("// Unicode %s; written by make_unicode_tables.py.\n" % unicodedata.unidata_version)
        for name, predicate in [
            ("kIgnored", lambda category, c: category in ("Cc", "Cf", "Co") and c not in "\t\n\r"),
            ("kSpace", lambda category, c: category in ("Zs", "Zl", "Zp") or c in "\t\n\r"),
            ("kPunctuation", lambda category, c: category[0] == "P" or (c < "\x7f" and category[0] == "S")),
        ]:
            out.write("constexpr Range %s[] = {" % name)
            out.write(",".join("{0x%x,0x%x}" % (first, last) for first, last in ranges(predicate)))
            out.write("};\n")
        out.write("constexpr Fold kFolds[] = {")
        for code in range(sys.maxunicode + 1):
            if code in hangul or code in surrogates:
                continue
            text = folded(chr(code))
            if text != chr(code):
                out.write("{0x%x,{%s}}," % (code, ",".join("0x%x" % ord(c) for c in text)))
                assert len(text) <= 4, hex(code)
        out.write("};\n")


if __name__ == "__main__":
    main(sys.argv[1])
