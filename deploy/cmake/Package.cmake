# Installation and the CMake package NniCompression.
