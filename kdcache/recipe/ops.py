"""What may happen to a view's pixels after crop, resize and flip, with integer arguments.

A step is a row of STEP_WIDTH int64: the operation, then its arguments, then zeros. Steps are all
that pixels are told, so that no arithmetic on numbers drawn is repeated where pixels are made.
Factors are in 65,536ths: 65,536 leaves the pixels as they are.

Source: torchvision's transforms of these names.
"""

from enum import IntEnum

STEP_WIDTH = 6
UNIT = 1 << 16


class Op(IntEnum):
    """An operation and, after the colon, its arguments."""

    NOTHING = 0
    BRIGHTNESS = 1  # factor
    CONTRAST = 2  # factor; towards the mean grey level of the view
    SATURATION = 3  # factor; towards each pixel's grey level
    HUE = 4  # turn of the colour wheel in 65,536ths, -32,768 to 32,768
    SHARPNESS = 5  # factor; towards the view smoothed by a 3 x 3 kernel
    GREY = 6
    BLUR = 7  # sigma of the Gaussian in 64ths of a pixel
    SOLARIZE = 8  # threshold, 0 to 256: values of at least this are inverted
    POSTERIZE = 9  # bits kept, 1 to 8
    EQUALIZE = 10
    AUTOCONTRAST = 11
    SHEAR_X = 12  # in 65,536ths, signed
    SHEAR_Y = 13
    TRANSLATE_X = 14  # pixels, signed
    TRANSLATE_Y = 15
    ROTATE = 16  # half degrees, counter-clockwise, signed
    ERASE = 17  # left, top, width, height in pixels; fill colour as 0xRRGGBB
    ERASE_NOISE = 18  # left, top, width, height in pixels; key of the noise, 0 to 2**63 - 1
