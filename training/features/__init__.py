"""Networks that see what images have in common: their features measure generated images, and some compare them in a loss.

All are frozen. Weights come with a package, with this project, or are put into a folder by hand; none is ever downloaded.
"""

# an extractor's name -> where its weights come from
EXTRACTORS = {
    "efficientnet-lite0": "ImageNet; installed with ganserve",
    "inception-v3": "ImageNet as the FID is defined on; put into the weights folder by hand",
    "digits-classifier": "MNIST; trained by this project",
    "fashion-classifier": "Fashion-MNIST; trained by this project",
}
# a network whose weights are put into the folder of weights by hand -> the file's name there
BY_HAND = {"inception-v3": "inception-v3.pth", "vgg19": "vgg19.pth"}
